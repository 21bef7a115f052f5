"""Strangers' plugins: what a broken one can't do, what PYRUN_PLUGINS limits, and what is listed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyrun.storage.contract import Caps, Driver, Env, Verdict
from pyrun.storage.events import StorageEvent
from pyrun.storage.hookspecs import hookimpl
from pyrun.storage.plugins import Plugins
from support.plugins import install
from support.pyrun import Pyrun, terminal

_HOOK = "from pyrun.storage.hookspecs import hookimpl\n"
_DRIVER = (
    _HOOK
    + """
from pyrun.storage.contract import Caps, Driver, Verdict
class Acme(Driver):
    name = "acme"
    @classmethod
    def probe(cls, env, options): {probe}
    def ingest(self, blob, dest, parent): {ingest}
    def prepare(self, layers, dest, size=None): pass
    def mount(self, layers, rw, idmap=None): pass
@hookimpl
def pyrun_storage_drivers(): return [Acme]
"""
)
_FINE = "return Verdict(True, 'fine', caps=Caps(max_layers=7))"

# What a plugin may do wrong, and the words by which it is listed.
BROKEN = {
    "does not parse": ("def (", "SyntaxError"),
    "imports what is missing": ("import no_such_module", "ModuleNotFoundError"),
    "raises on import": ("raise RuntimeError('no such luck')", "RuntimeError: no such luck"),
    "exits on import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "raises what can't be printed": (
        "class E(BaseException):\n    def __str__(self): raise ValueError\nraise E",
        "E",
    ),
    "has no hook": ("def pyrun_storage_drivers(): return []", "no hook"),
    "has a hook that does not exist": (_HOOK + "@hookimpl\ndef pyrun_magic(): pass", "unknown hook pyrun_magic"),
    "has a hook with other arguments": (
        _HOOK + "@hookimpl\ndef pyrun_storage_choose(colour): pass",
        "colour",
    ),
    "raises in the hook": (_HOOK + "@hookimpl\ndef pyrun_storage_drivers(): 1 / 0", "ZeroDivisionError"),
    "exits in the hook": (_HOOK + "@hookimpl\ndef pyrun_storage_drivers(): raise SystemExit", "SystemExit"),
    "returns a number": (_HOOK + "@hookimpl\ndef pyrun_storage_drivers(): return 5", "not a list"),
    "returns a text": (_HOOK + "@hookimpl\ndef pyrun_storage_drivers(): return 'acme'", "not a list"),
    "returns a class, not a list": (
        _HOOK + "@hookimpl\ndef pyrun_storage_drivers(): return dict",
        "not a list",
    ),
    "returns what is no driver": (_HOOK + "@hookimpl\ndef pyrun_storage_drivers(): return [1]", "not a subclass"),
    "never stops offering": (
        _HOOK + "import itertools\n@hookimpl\ndef pyrun_storage_drivers(): return itertools.repeat(int)",
        "more than 100",
    ),
    "raises in its generator": (
        _HOOK + "@hookimpl\ndef pyrun_storage_drivers():\n    return (1 / 0 for _ in [1])",
        "ZeroDivisionError",
    ),
    "has methods that can't be called": (
        _DRIVER.format(probe=_FINE, ingest="pass").replace("(self, layers, rw, idmap=None)", "(self)"),
        "mount can't be called as mount(layers, rw, idmap)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_listed_with_its_reason_and_no_command_minds(
    fresh: Pyrun, tmp_path: Path, what: str
) -> None:
    code, reason = BROKEN[what]
    install(tmp_path, "acme", code)
    fresh.env["PYTHONPATH"] = str(tmp_path)
    (line,) = [line for line in fresh.ok("plugins").splitlines() if line.startswith("acme")]
    assert line.split()[:3] == ["acme", "acme", "1.2"]
    assert "broken" in line
    assert reason in line
    doctor = fresh.ok("storage", "doctor")
    assert re.search(rf"^acme\s+broken\s.*{re.escape(reason)}", doctor, re.M)
    assert re.search(r"^overlay\s+selected", doctor, re.M)
    (fresh.root / "storage.json").unlink()  # the choice of a driver asks everybody
    done = fresh("run", "--rm", "busybox", "echo", "fine")
    assert (done.returncode, done.stdout, done.stderr) == (0, "fine\n", "")


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        ("raise RuntimeError('half-way')", "half-way"),
        ("raise SystemExit(4)", "SystemExit"),
        ("return None", "None"),
        ("return True", "True"),
        ("return Verdict(True, None)", "why is None"),
        ("return Verdict(True, 'fine', fix=5)", "fix is 5"),
        ("return Verdict(1, 'fine')", "ok is 1"),
        ("return Verdict(True, 'fine', caps={'idmap': True})", "caps"),
        ("return Verdict(True, 'fine', caps=Caps(max_layers='many'))", "max_layers is 'many'"),
        ("return Verdict(True, 'fine', caps=Caps(chained=None))", "chained is None"),
        ("return Verdict(True, 'fine', found={'a': object})", "found"),
    ],
)
def test_a_probe_that_breaks_the_contract_is_a_refusal(
    fresh: Pyrun, tmp_path: Path, probe: str, reason: str
) -> None:
    install(tmp_path, "acme", _DRIVER.format(probe=probe, ingest="pass"))
    fresh.env["PYTHONPATH"] = str(tmp_path)
    doctor = fresh.ok("storage", "doctor")
    assert re.search(rf"^acme\s+(no|broken)\s.*{reason}", doctor, re.M)
    (fresh.root / "storage.json").unlink()
    assert fresh.sh("echo fine") == "fine\n"
    done = fresh("run", "--rm", "--storage", "acme", "busybox", "true")
    assert done.returncode == 125
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_driver_that_fails_at_work_is_named_with_what_it_was_asked(fresh: Pyrun, tmp_path: Path) -> None:
    install(tmp_path, "acme", _DRIVER.format(probe=_FINE, ingest="raise KeyError('lost')"))
    fresh.env["PYTHONPATH"] = str(tmp_path)
    done = fresh("run", "--rm", "--storage", "acme", "busybox", "true")
    assert done.returncode == 125
    assert "acme" in done.stderr
    assert "KeyError" in done.stderr
    assert "internal error" not in done.stderr
    assert fresh.sh("echo fine") == "fine\n"
    assert fresh.records() == []


# --- hooks that decide and watch


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('undecided')", "undecided"),
        ("raise SystemExit", "SystemExit"),
        ("return 5", "it chose 5"),
        ("return 'zfs'", "it chose 'zfs'"),
        ("verdicts.clear(); return object", "it chose"),
    ],
)
def test_a_policy_that_talks_nonsense_is_passed_over_with_a_warning(
    empty: Pyrun, tmp_path: Path, body: str, reason: str
) -> None:
    code = f"{_HOOK}@hookimpl\ndef pyrun_storage_choose(verdicts, env):\n    {body}\n"
    install(tmp_path, "policy", code)
    empty.env["PYTHONPATH"] = str(tmp_path)
    done = empty("pull", "-q", "busybox")
    assert done.returncode == 0
    assert "warning: plugin policy failed in pyrun_storage_choose" in done.stderr
    assert reason in done.stderr
    assert json.loads((empty.root / "storage.json").read_text())["driver"] == "overlay"


def test_a_policy_that_names_a_driver_is_followed(empty: Pyrun, tmp_path: Path) -> None:
    code = f"{_HOOK}@hookimpl\ndef pyrun_storage_choose(verdicts, env):\n    return 'vfs'\n"
    install(tmp_path, "policy", code)
    empty.env["PYTHONPATH"] = str(tmp_path)
    empty.ok("pull", "-q", "busybox")
    assert json.loads((empty.root / "storage.json").read_text())["driver"] == "vfs"


@pytest.mark.parametrize("body", ["raise ValueError('deaf')", "raise SystemExit('deaf')"])
def test_an_observer_that_fails_is_told_of_once_and_stops_nothing(
    fresh: Pyrun, tmp_path: Path, body: str
) -> None:
    code = f"{_HOOK}@hookimpl\ndef pyrun_storage_event(event): {body}\n"
    install(tmp_path, "observer", code)
    fresh.env["PYTHONPATH"] = str(tmp_path)
    done = fresh("run", "--rm", "busybox", "echo", "fine")
    assert (done.returncode, done.stdout) == (0, "fine\n")
    assert done.stderr.count("deaf") == 1
    assert "plugin observer failed in pyrun_storage_event" in done.stderr


def test_one_plugins_failure_hides_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    class Failing:
        @hookimpl
        def pyrun_storage_event(self, event: StorageEvent) -> None:
            raise SystemExit

        @hookimpl
        def pyrun_storage_choose(self, verdicts: Any, env: Env) -> str:
            raise SystemExit

        @hookimpl
        def pyrun_storage_drivers(self) -> Any:
            raise SystemExit

    class Sound:
        @hookimpl
        def pyrun_storage_event(self, event: StorageEvent) -> None:
            heard.append(event.kind)

        @hookimpl
        def pyrun_storage_choose(self, verdicts: Any, env: Env) -> str:
            return "vfs"

    for order in (("a", "b"), ("b", "a")):
        plugins = Plugins(dict(zip(order, (Failing(), Sound()), strict=True)))
        plugins.emit(StorageEvent("ingested", "overlay", "sha256:0", 0.1))
        assert plugins.choose({"vfs": Verdict(True, "fine")}, Env("/")) == "vfs"
        assert any(found.name == "overlay" and found.driver for found in plugins.drivers())
    assert heard == ["ingested", "ingested"]


# --- versions, names


def test_a_driver_for_another_version_of_the_contract_is_listed_with_both(
    fresh: Pyrun, tmp_path: Path
) -> None:
    install(tmp_path, "acme", _DRIVER.format(probe=_FINE, ingest="pass") + "Acme.api = 99\n")
    fresh.env["PYTHONPATH"] = str(tmp_path)
    assert re.search(
        r"^acme\s+broken\s.*version 99 of the driver contract.* has 1", fresh.ok("storage", "doctor"), re.M
    )
    done = fresh("run", "--rm", "--storage", "acme", "busybox", "true")
    assert done.returncode == 125
    assert "version 99" in done.stderr


def test_of_two_plugins_with_one_name_the_first_serves_and_the_other_is_broken(
    fresh: Pyrun, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, _DRIVER.format(probe=_FINE, ingest="pass"), points={"acme": name})
    fresh.env["PYTHONPATH"] = str(tmp_path)
    lines = [line for line in fresh.ok("plugins").splitlines() if line.startswith("acme")]
    assert sorted("broken" in line for line in lines) == [False, True]
    assert "the name acme is taken by" in "\n".join(lines)


def test_a_stranger_can_not_take_a_built_in_drivers_name(fresh: Pyrun, tmp_path: Path) -> None:
    install(tmp_path, "acme", _DRIVER.format(probe=_FINE, ingest="pass").replace('"acme"', '"overlay"'))
    fresh.env["PYTHONPATH"] = str(tmp_path)
    assert fresh.sh("echo fine") == "fine\n"
    lines = [line for line in fresh.ok("plugins").splitlines() if "taken by another plugin" in line]
    assert len(lines) == 1


# --- listings


def test_plugins_are_listed_with_versions_and_hooks(fresh: Pyrun, tmp_path: Path) -> None:
    code = _DRIVER.format(probe=_FINE, ingest="pass") + "@hookimpl\ndef pyrun_storage_event(event): pass\n"
    install(tmp_path, "acme", code)
    fresh.env["PYTHONPATH"] = str(tmp_path)
    documents = [json.loads(line) for line in fresh.ok("plugins", "--format", "json").splitlines()]
    (acme,) = [document for document in documents if document["Name"] == "acme"]
    assert acme == {
        "Name": "acme",
        "Distribution": "acme",
        "Version": "1.2",
        "Hooks": ["pyrun_storage_drivers", "pyrun_storage_event"],
        "Drivers": ["acme"],
        "State": "loaded",
        "Why": "",
    }
    overlay = next(document for document in documents if document["Name"] == "overlay")
    assert (overlay["Distribution"], overlay["Drivers"]) == ("pyrun", ["overlay"])
    assert fresh.ok("plugins").splitlines()[0].split() == [
        "NAME", "DISTRIBUTION", "VERSION", "HOOKS", "STATE", "WHY",
    ]  # fmt: skip
    assert "acme storage_drivers,storage_event" in re.sub(r"\s+", " ", fresh.ok(
        "plugins", "--format", "table {{.Name}}\t{{.Hooks}}"))  # fmt: skip


def test_the_doctor_gives_every_capability_as_json(fresh: Pyrun, tmp_path: Path) -> None:
    install(tmp_path, "acme", _DRIVER.format(probe=_FINE, ingest="pass"))
    install(tmp_path, "broken", "raise RuntimeError")
    fresh.env["PYTHONPATH"] = str(tmp_path)
    documents = {
        found["Driver"]: found
        for found in map(json.loads, fresh.ok("storage", "doctor", "--format", "json").splitlines())
    }
    assert documents["acme"]["Caps"] == Caps(max_layers=7).as_dict()
    assert documents["acme"]["State"] == "usable"
    assert documents["acme"]["Distribution"] == "acme 1.2"
    assert documents["broken"]["Caps"] is None
    assert documents["overlay"]["State"] == "selected"
    template = "{{if .Caps}}{{.Driver}} {{.Caps.max_layers}}{{end}}"
    assert "acme 7\n" in fresh.ok("storage", "doctor", "--format", template)
    assert re.search(
        r"^acme\s.*max_layers=7",
        fresh.ok("storage", "doctor", "--format", "table {{.Driver}}\t{{.Caps}}"),
        re.M,
    )


# --- PYRUN_PLUGINS


def test_pyrun_plugins_limits_loading_by_entry_point_and_by_distribution(
    fresh: Pyrun, tmp_path: Path
) -> None:
    mark = tmp_path / "imported"
    code = f"open({str(mark)!r}, 'w').close()\n" + _DRIVER.format(probe=_FINE, ingest="pass")
    install(tmp_path, "acme-storage", code, points={"acme": "acme_storage"})
    fresh.env["PYTHONPATH"] = str(tmp_path)
    states = {}
    for value in ("pyrun", "overlay", "overlay,acme", " acme-storage , pyrun ", ""):
        fresh.env["PYRUN_PLUGINS"] = value
        mark.unlink(missing_ok=True)
        lines = map(json.loads, fresh.ok("plugins", "--format", "json").splitlines())
        states[value] = {line["Name"]: line["State"] for line in lines}
        assert mark.exists() == (states[value]["acme"] == "loaded")
        assert fresh.sh("echo fine") == "fine\n"
    assert (states["pyrun"]["acme"], states["pyrun"]["overlay"]) == ("left out", "loaded")
    assert (states["overlay"]["vfs"], states["overlay"]["overlay"]) == ("left out", "loaded")
    assert (states["overlay,acme"]["acme"], states["overlay,acme"]["vfs"]) == ("loaded", "left out")
    assert set(states[" acme-storage , pyrun "].values()) <= {"loaded", "broken"}
    assert "left out" not in states[""].values()


def test_a_name_in_pyrun_plugins_that_nothing_has_is_shown(fresh: Pyrun) -> None:
    fresh.env["PYRUN_PLUGINS"] = "pyrun,acmee"
    assert re.search(r"^acmee\s+missing\s", fresh.ok("plugins"), re.M)


def test_a_store_whose_driver_is_left_out_says_so_and_nothing_is_switched(fresh: Pyrun) -> None:
    fresh.env["PYRUN_PLUGINS"] = "vfs"
    done = fresh("run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "'overlay', with which this store was made, is left out by PYRUN_PLUGINS" in done.stderr
    del fresh.env["PYRUN_PLUGINS"]
    assert fresh.sh("echo fine") == "fine\n"


class _Copying(Driver):
    name = "copying"

    @classmethod
    def probe(cls, env: Env, options: Any) -> Verdict:
        return Verdict(True, "fine")

    def ingest(self, blob: Any, dest: str, parent: Any) -> None: ...

    def prepare(self, layers: Any, dest: str, size: int | None = None) -> None: ...

    def mount(self, layers: Any, rw: str | None, idmap: int | None = None) -> int:
        raise NotImplementedError


def test_a_class_whose_name_raises_is_broken_alone() -> None:
    class Meta(type(Driver)):  # type: ignore[misc]
        def __getattribute__(cls, name: str) -> Any:
            if name == "api":
                raise RuntimeError("not today")
            return super().__getattribute__(name)

    class Odd(_Copying, metaclass=Meta):
        name = "odd"

    class Offers:
        @hookimpl
        def pyrun_storage_drivers(self) -> Any:
            return [Odd, _Copying]

    found = {f.driver: f for f in Plugins({"mine": Offers()}).drivers()}
    assert found[_Copying].name == "copying"
    assert any("not today" in f.broken for f in Plugins({"mine": Offers()}).drivers())


def test_on_a_terminal_the_doctor_wraps_what_it_says(fresh: Pyrun, tmp_path: Path) -> None:
    why = "a reason of very many words, as they come, " * 20
    install(
        tmp_path, "acme", _DRIVER.format(probe=f"return Verdict(False, {why!r}, 'fix this')", ingest="pass")
    )
    fresh.env["PYTHONPATH"] = str(tmp_path)
    with terminal(fresh, "storage", "doctor", size=(24, 100)) as window:
        assert window.wait(60) == 0
        lines = window.output.decode().split("\r\n")
    assert all(len(line) <= 100 for line in lines), lines
    assert re.match(r"acme +no +a reason of", next(line for line in lines if line.startswith("acme")))
    assert any("fix this" in line for line in lines)
    said = " ".join(" ".join(lines).split())
    assert said.count("very many") >= 19
