"""The store and its drivers: choice, plugins, routes, events, layers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import ConfigError, StorageError, UsageError
from pyrun.kernel import mount, overlay, syscall
from pyrun.storage import store as stores
from pyrun.storage.contract import Caps, Driver, Env, Verdict
from pyrun.storage.events import StorageEvent
from pyrun.storage.hookspecs import hookimpl
from pyrun.storage.locks import Staging
from pyrun.storage.plugins import Plugins
from support.pyrun import Pyrun, copy_store
from support.registry import Registry, tar


class Copying(Driver):
    """A minimal sound driver."""

    name = "copying"

    @classmethod
    def probe(cls, env: Env, options: Any) -> Verdict:
        return Verdict(True, "plain copies", caps=Caps(idmap=False))

    def ingest(self, blob: Any, dest: str, parent: Any) -> None: ...

    def prepare(self, layers: Any, dest: str, size: int | None = None) -> None: ...

    def mount(self, layers: Any, rw: str | None, idmap: int | None = None) -> int:
        raise NotImplementedError


class Offers:
    def __init__(self, *drivers: Any) -> None:
        self.drivers = drivers

    @hookimpl
    def pyrun_storage_drivers(self) -> Any:
        return self.drivers


def _package(directory: Path, name: str, code: str) -> None:
    """An installed distribution with one entry point of the group "pyrun"."""
    (directory / f"{name}.py").write_text(code)
    info = directory / f"{name}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[pyrun]\n{name} = {name}\n")


# --- plugins


def test_the_overlay_driver_is_found_by_its_entry_point() -> None:
    found = {f.name: f for f in Plugins().drivers()}
    assert found["overlay"].driver is not None
    assert found["overlay"].entry == "pyrun_drivers.overlay:OverlayDriver"
    assert found["overlay"].distribution.startswith("pyrun ")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError"),
        ("raise SystemExit('no')", "SystemExit"),
        (
            "from pyrun.storage.hookspecs import hookimpl as h\n@h\ndef pyrun_storage_drivers(): raise ValueError('o')",
            "ValueError: o",
        ),
        (
            "from pyrun.storage.hookspecs import hookimpl\n@hookimpl\ndef pyrun_storage_drivers(): return [int]",
            "not a subclass",
        ),
        (
            "from pyrun.storage.hookspecs import hookimpl\n@hookimpl\ndef pyrun_no_such_hook(): return []",
            "unknown hook",
        ),
    ],
)
def test_a_broken_plugin_is_listed_with_its_reason_and_breaks_nothing(
    fresh: Pyrun, tmp_path: Path, code: str, reason: str
) -> None:
    _package(tmp_path, "acme", code)
    fresh.env["PYTHONPATH"] = str(tmp_path)
    table = fresh.ok("storage", "doctor")
    line = next(line for line in table.splitlines() if line.startswith("acme"))
    assert "broken" in line
    assert reason in line
    assert re.search(r"^overlay\s+selected", table, re.M)
    assert fresh.sh("echo fine") == "fine\n"


def test_a_strangers_driver_is_found_probed_and_refused_in_its_own_words(
    fresh: Pyrun, tmp_path: Path
) -> None:
    _package(
        tmp_path,
        "acme",
        "from pyrun.storage.contract import Driver, Verdict\n"
        "from pyrun.storage.hookspecs import hookimpl\n"
        "class Acme(Driver):\n"
        "    name = 'acme-zfs'\n"
        "    @classmethod\n"
        "    def probe(cls, env, options): return Verdict(False, 'there is no ZFS here', 'install ZFS')\n"
        "    def ingest(self, blob, dest, parent): ...\n"
        "    def prepare(self, layers, dest, size=None): ...\n"
        "    def mount(self, layers, rw, idmap=None): ...\n"
        "@hookimpl\n"
        "def pyrun_storage_drivers(): return [Acme]\n",
    )
    fresh.env["PYTHONPATH"] = str(tmp_path)
    assert re.search(
        r"^acme-zfs\s+no\s+there is no ZFS here\s+install ZFS", fresh.ok("storage", "doctor"), re.M
    )
    done = fresh("run", "--rm", "--storage", "acme-zfs", "busybox", "true")
    assert done.returncode == 125
    assert "there is no ZFS here" in done.stderr


def test_unsound_driver_classes_are_broken_for_a_stated_reason() -> None:
    class Elsewhere(Copying):
        name = "elsewhere"
        api = 99

    class Lacking(Driver):
        name = "lacking"

    class Nameless(Copying):
        name = "a b"

    class Again(Copying):
        name = "overlay"

    plugins = Plugins({"x": Offers(Elsewhere, Lacking, Nameless, Copying), "y": Offers(Again)})
    reasons = {(f.name, f.broken) for f in plugins.drivers() if f.broken}
    text = "\n".join(reason for _, reason in reasons)
    assert "version 99 of the driver contract" in text
    assert "lacks the methods ingest, mount, prepare, probe" in text
    assert "'a b'" in text
    assert "taken by another plugin" in text
    usable = [f.name for f in plugins.drivers() if not f.broken]
    assert {"copying", "overlay"} <= set(usable)
    assert usable.count("overlay") == 1
    assert not {"elsewhere", "lacking", "a b"} & set(usable)


def test_a_site_policy_chooses_the_driver_of_a_new_store() -> None:
    class Policy:
        @hookimpl
        def pyrun_storage_choose(self, verdicts: Any, env: Env) -> str | None:
            assert verdicts["overlay"].ok
            return "copying"

    class Broken:
        @hookimpl
        def pyrun_storage_choose(self, verdicts: Any, env: Env) -> str | None:
            raise RuntimeError("no opinion, just trouble")

    verdicts = {"overlay": Verdict(True, "fine"), "copying": Verdict(True, "fine")}
    assert Plugins({"a": Broken(), "p": Policy()}).choose(verdicts, Env("/")) == "copying"
    assert Plugins().choose(verdicts, Env("/")) is None


def test_observers_hear_of_everything_and_their_failures_are_not_fatal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    heard = []

    class Observer:
        @hookimpl
        def pyrun_storage_event(self, event: StorageEvent) -> None:
            heard.append(event.kind)

    class Failing:
        @hookimpl
        def pyrun_storage_event(self, event: StorageEvent) -> None:
            raise RuntimeError("deaf")

    plugins = Plugins({"one": Failing(), "two": Observer()})
    assert plugins.observers
    plugins.emit(StorageEvent("ingested", "overlay", "sha256:0", 0.1))
    assert heard == ["ingested"]
    assert "deaf" in capsys.readouterr().err


def test_an_observer_sees_a_run(fresh: Pyrun, tmp_path: Path) -> None:
    log = tmp_path / "log"
    _package(
        tmp_path,
        "watcher",
        "from pyrun.storage.hookspecs import hookimpl\n"
        "@hookimpl\n"
        "def pyrun_storage_event(event):\n"
        f"    open({str(log)!r}, 'a').write(event.kind + '\\n')\n",
    )
    fresh.env["PYTHONPATH"] = str(tmp_path)
    fresh.sh("true")
    fresh.sh("true")
    assert log.read_text().split() == ["prepared", "mounted", "discarded"] * 2


# --- choice and record


def test_a_store_keeps_the_driver_it_was_made_with(fresh: Pyrun) -> None:
    record = json.loads((fresh.root / "storage.json").read_text())
    assert record["driver"] == "overlay"
    record["driver"] = "zfs-of-old"
    (fresh.root / "storage.json").write_text(json.dumps(record))
    done = fresh("run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "zfs-of-old" in done.stderr
    assert "with which this store was made" in done.stderr


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    stores.make_directories(str(tmp_path))
    (tmp_path / "storage.json").write_text('{"version": 99}')
    with pytest.raises(ConfigError, match="another version"):
        stores.open_store(Env(str(tmp_path)), "", {})


def test_a_damaged_store_record_is_named(fresh: Pyrun) -> None:
    (fresh.root / "storage.json").write_text("{")
    done = fresh("run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "storage.json is damaged" in done.stderr


def test_options_are_typed_and_unknown_ones_list_the_valid(tmp_path: Path) -> None:
    env = Env(str(tmp_path))
    with pytest.raises(UsageError, match="volatile"):
        stores.open_store(env, "overlay", {"overlay": {"nonsense": "1"}})
    with pytest.raises(UsageError, match="bool"):
        stores.open_store(env, "overlay", {"overlay": {"volatile": "maybe"}})
    with pytest.raises(StorageError, match="not installed"):
        stores.open_store(env, "overlay", {"zfs": {"x": "1"}})
    with pytest.raises(UsageError, match="One of auto, on, off"):
        stores.open_store(env, "overlay", {"overlay": {"index": "perhaps"}})
    options = stores.open_store(env, "overlay", {"overlay": {"volatile": "true"}}).driver.options
    assert options == {"volatile": True, "index": "auto", "redirect_dir": "auto", "metacopy": "auto"}


def test_the_volatile_option_reaches_the_mount_and_works_again_and_again(pyrun: Pyrun) -> None:
    for _ in range(2):
        assert "volatile" in pyrun.sh(
            "grep ' / ' /proc/self/mountinfo", "--storage-opt", "overlay.volatile=true"
        )
    assert "volatile" not in pyrun.sh("grep ' / ' /proc/self/mountinfo")


def test_options_come_from_the_configuration_too(pyrun: Pyrun, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[storage]\ndriver = 'overlay'\n[storage.overlay]\nvolatile = true\n")
    out = pyrun.ok("--config", str(config), "run", "--rm", "busybox", "grep", " / ", "/proc/self/mountinfo")
    assert "volatile" in out
    for text, word in [
        ("[storage]\nnonsense = 1\n", "nonsense"),
        ("[stroage]\n", "stroage"),
        ("[storage.overlay]\nnope = 1\n", "nope"),
        ("[run]\nuserns = 'x'\n", "userns"),
        ("= broken", "TOML"),
    ]:
        config.write_text(text)
        done = pyrun("--config", str(config), "run", "--rm", "busybox", "true")
        assert done.returncode == 125
        assert word in done.stderr


# --- the three routes


@pytest.mark.parametrize("route", overlay.ROUTES)
def test_containers_work_by_every_route(fresh: Pyrun, route: int) -> None:
    fresh.env["PYRUN_OVERLAY_ROUTE"] = str(route)
    assert f"route {route};" in fresh.ok("storage", "doctor")
    script = "rm -rf /tmp && mkdir /tmp && ls -A /tmp; touch /x; stat -c %u /x; echo y >>/etc/passwd; id -u"
    assert fresh.sh(script).split() == ["0", "0"]
    assert fresh.sh(script, "--userns", "host").split() == ["0", "0"]


@pytest.mark.parametrize("route", overlay.ROUTES)
@pytest.mark.parametrize("depth", [1, 128, 500])
def test_up_to_500_layers_mount_by_every_route(tmp_path: Path, base: Path, route: int, depth: int) -> None:
    root = base / f"deep-{route}-{depth}"
    for number in range(depth):
        (root / f"a layer, with:odd\\characters-{number}").mkdir(parents=True)
        (root / f"a layer, with:odd\\characters-{number}/f{number}").touch()
    (root / "u").mkdir()
    (root / "w").mkdir()
    lowers = [f"a layer, with:odd\\characters-{number}" for number in range(depth)]
    fd = overlay.mount_overlay(overlay.Stack(str(root), lowers, "u", "w"), route)
    try:
        opened = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        assert len(os.listdir(opened)) == depth
        os.close(opened)
    finally:
        os.close(fd)
    assert str(root) not in Path("/proc/self/mountinfo").read_text()


def test_501_layers_are_refused_with_the_limit(tmp_path: Path) -> None:
    from pyrun.errors import TooManyLayers
    from pyrun.storage.contract import Layer

    store = stores.open_store(Env(str(tmp_path)), "overlay", {})
    layers = [Layer(f"sha256:{n:064x}", f"{tmp_path}/layers/{n}") for n in range(501)]
    with pytest.raises(TooManyLayers, match="500"):
        store.driver.mount(layers, None)


def test_a_trial_leaves_nothing_behind(tmp_path: Path) -> None:
    stores.open_store(Env(str(tmp_path)), "overlay", {})
    assert os.listdir(tmp_path / "staging") == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_a_store_on_overlayfs_itself_is_refused_with_the_reason_and_a_remedy(base: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (base / "stacked" / name).mkdir(parents=True)
    script = (
        "cd '{0}' && mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged && exec '{1}' "
        "--root '{0}/merged/store' --state '{0}/state' run --rm --storage overlay --pull never busybox true"
    ).format(base / "stacked", Path(sys.executable).parent / "pyrun")
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert "overlay" in done.stderr
    assert "--root" in done.stderr


# --- layers


def test_a_layer_that_is_missing_is_made_again_from_its_blob(fresh: Pyrun) -> None:
    import shutil

    for layer in (fresh.root / "layers/overlay").iterdir():
        if not layer.name.startswith("."):
            shutil.rmtree(layer)
    assert fresh.sh("echo back", "--pull", "never") == "back\n"


def test_a_layer_that_a_power_cut_may_have_damaged_is_made_again(fresh: Pyrun) -> None:
    layer = next(p for p in (fresh.root / "layers/overlay").iterdir() if (p / "fs/bin/busybox").exists())
    unsynced = fresh.root / "layers/overlay/.unsynced"
    unsynced.mkdir(exist_ok=True)
    (unsynced / layer.name).write_text("the boot before")
    (layer / "fs/bin/busybox").write_bytes(b"")  # what a lost write leaves
    assert fresh.sh("echo whole", "--pull", "never") == "whole\n"
    assert fresh.ok("ps", "-aq") == ""


def test_concurrent_ingests_of_one_layer_make_one_layer(
    tmp_path: Path, registry: Registry, fresh: Pyrun
) -> None:
    registry.push_image("many/pullers", "latest", [tar({"a": os.urandom(2_000_000)})])
    pulls = [fresh.start("pull", "-q", "many/pullers", stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait(60) for process in pulls] == [0, 0, 0, 0]
    assert os.listdir(fresh.root / "staging") == []
    assert len(json.loads(fresh.ok("inspect", "many/pullers"))) == 1


def test_staging_of_a_living_process_is_left_alone_and_of_a_dead_one_removed(tmp_path: Path) -> None:
    staging = Staging(str(tmp_path))
    mine = staging.new("overlay")
    pid = os.fork()
    if pid == 0:
        staging.new("overlay")
        os._exit(0)
    os.waitpid(pid, 0)
    (tmp_path / "stray-file").touch()
    removed: list[str] = []

    def remove(path: str, driver: str) -> None:
        assert driver == "overlay"
        os.rmdir(path)
        removed.append(path)

    staging.sweep(remove)
    assert len(removed) == 1
    assert os.listdir(tmp_path) == [os.path.basename(mine.path)]
    mine.close()


def test_the_store_is_closed_to_other_users(fresh: Pyrun) -> None:
    """CVE-2021-41091."""
    assert os.stat(fresh.root).st_mode & 0o077 == 0


def test_a_store_path_with_odd_characters_works(base: Path, small: Pyrun) -> None:
    root = base / "a:b,c\\d e\nf"
    copy_store(small.root, root)
    assert Pyrun(root, base / "odd-state", env=small.env).sh("echo odd") == "odd\n"


# --- the kernel room


def test_every_system_call_can_be_watched(tmp_path: Path) -> None:
    calls = []
    syscall.trace = lambda name, args, result: calls.append((name, result))
    try:
        stores.open_store(Env(str(tmp_path)), "overlay", {})
        with pytest.raises(FileNotFoundError):
            mount.open_tree(mount.AT_FDCWD, "/no/such/path")
    finally:
        syscall.trace = None
    names = [name for name, _ in calls]
    assert {"fsopen", "fsconfig", "fsmount", "open_tree", "mount_setattr"} <= set(names)
    assert isinstance(calls[-1][1], FileNotFoundError)


def test_many_opens_leak_no_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        store = stores.open_store(Env(str(tmp_path)), "overlay", {})
        os.mkdir(tmp_path / "rw")
        store.driver.prepare([], str(tmp_path / "rw"))
        os.close(store.driver.mount([], str(tmp_path / "rw")))
        os.close(store.driver.mount([], None))
        store.driver.remove(str(tmp_path / "rw"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_only_view_of_one_layer_hides_its_whiteouts_and_refuses_writes(
    fresh: Pyrun, registry: Registry
) -> None:
    from pyrun.storage.layers import LayerStore

    registry.push_image("white/out", "latest", [tar({"a/.wh.gone": b"", "a/kept": b"x"})])
    fresh.ok("pull", "-q", "white/out")
    image = json.loads(fresh.ok("inspect", "white/out"))[0]
    store = stores.open_store(Env(str(fresh.root)), "", {})
    assert isinstance(store.layers, LayerStore)
    layer = store.layers.find(image["RootFS"]["Layers"][0])
    assert layer
    fd = store.driver.mount([layer], None)
    try:
        opened = os.open("a", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        assert os.listdir(opened) == ["kept"]
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir("new", dir_fd=opened)
        os.close(opened)
    finally:
        os.close(fd)


def test_threads_of_an_embedding_program_may_open_stores(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            stores.open_store(Env(str(tmp_path)), "", {})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
