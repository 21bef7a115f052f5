"""`pyrun pull` as it is typed: what it prints, what it asks the registry, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.faultproxy import Fault, FaultProxy, close_after, drip, status
from support.pyrun import Pyrun, terminal
from support.registry import HOST_ARCHITECTURE, OTHER_ARCHITECTURE, Pushed, Registry, tar

LAYERS = [tar({"a": os.urandom(300_000)}), tar({"b": b"two"})]

Serve = Callable[..., FaultProxy]


@pytest.fixture(scope="module")
def image(registry: Registry) -> Pushed:
    return registry.push_image("library/typed", "latest", LAYERS, {"Cmd": ["sh"]})


@pytest.fixture
def serve(fresh: Pyrun, registry: Registry, tmp_path: Path) -> Iterator[Serve]:
    """Puts a proxy with faults between ``fresh`` and the registry."""
    with ExitStack() as running:

        def start(*faults: Fault) -> FaultProxy:
            proxy = running.enter_context(
                FaultProxy(registry.host, tmp_path / f"log-{time.monotonic_ns()}", faults)
            )
            conf = tmp_path / "proxy.conf"
            conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{proxy.host}"\n')
            fresh.env["CONTAINERS_REGISTRIES_CONF"] = str(conf)
            return proxy

        yield start


def short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


# --- what goes over the network


def test_an_image_that_is_here_costs_one_head_by_tag_and_nothing_by_digest(
    fresh: Pyrun, serve: Serve, image: Pushed
) -> None:
    fresh.ok("pull", "typed")
    proxy = serve()
    assert "Image is up to date for typed:latest" in fresh.ok("pull", "typed")
    assert [(seen.method, seen.path) for seen in proxy.requests()] == [
        ("HEAD", "/v2/library/typed/manifests/latest")
    ]
    for digest in (image.digest, image.manifest_digest):
        proxy = serve()
        said = fresh.ok("pull", f"typed@{digest}")
        assert f"Digest: {digest}" in said
        assert list(proxy._all()) == []
    assert fresh.ok("images", "-q", "--no-trunc", "typed").split() == [image.config_digest]


def test_what_is_missing_of_an_image_is_fetched_though_its_record_is_here(
    fresh: Pyrun, serve: Serve, image: Pushed
) -> None:
    fresh.ok("pull", "-q", "typed")
    (fresh.root / "content/blobs/sha256" / image.layer_digests[0][7:]).unlink()
    proxy = serve()
    fresh.ok("pull", "typed")
    assert len(proxy.requests("GET .*/blobs/")) == 1
    fresh.ok("system", "check", "typed")


def test_another_platform_is_asked_for_though_the_tag_has_not_moved(
    fresh: Pyrun, serve: Serve, image: Pushed
) -> None:
    fresh.ok("pull", "-q", "typed")
    serve()
    fresh.ok("pull", "-q", "--platform", f"linux/{OTHER_ARCHITECTURE}", "typed")
    assert json.loads(fresh.ok("inspect", "typed"))[0]["Architecture"] == OTHER_ARCHITECTURE
    fresh.ok(
        "pull", "-q", "typed", env={**fresh.env, "DOCKER_DEFAULT_PLATFORM": f"linux/{HOST_ARCHITECTURE}"}
    )
    assert json.loads(fresh.ok("inspect", "typed"))[0]["Id"] == image.config_digest


# --- what it prints


def test_a_platform_that_is_not_there_is_refused_with_those_that_are(fresh: Pyrun, image: Pushed) -> None:
    done = fresh("pull", "--platform", "linux/riscv64", "typed")
    assert (done.returncode, done.stdout) == (1, "Using default tag: latest\n")
    assert "typed:latest has no image for linux/riscv64" in done.stderr
    assert f"Its platforms: linux/{OTHER_ARCHITECTURE}, linux/{HOST_ARCHITECTURE}." in done.stderr


def test_events_are_objects_a_line_and_the_last_says_what_came_of_it(fresh: Pyrun, image: Pushed) -> None:
    events = [json.loads(line) for line in fresh.ok("pull", "--progress", "json", "typed").splitlines()]
    assert events[0] == {"id": "latest", "status": "Pulling from library/typed"}
    assert events[-1] == {
        "status": "Downloaded newer image",
        "reference": "docker.io/library/typed:latest",
        "digest": image.digest,
        "image": image.config_digest,
        "newer": True,
    }
    for digest in image.layer_digests:
        states = [event for event in events if event.get("id") == short(digest)]
        assert list(dict.fromkeys(state["status"] for state in states)) == [
            "Pulling fs layer", "Downloading", "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
        ]  # fmt: skip
        assert all(0 <= state["current"] <= state["total"] for state in states if "total" in state)
    again = fresh.ok("pull", "--progress=json", "typed").splitlines()
    assert json.loads(again[-1])["newer"] is False
    assert len(again) == 2


@pytest.mark.parametrize(("kind", "lines"), [("plain", 17), ("none", 1), ("auto", 17)])
def test_progress_may_be_lines_or_nothing(fresh: Pyrun, image: Pushed, kind: str, lines: int) -> None:
    said = fresh.ok("pull", "--progress", kind, "typed").splitlines()
    assert len(said) == lines
    assert said[-1] == "docker.io/library/typed:latest"


def test_progress_may_be_drawn_though_nobody_looks(fresh: Pyrun, image: Pushed) -> None:
    assert "\x1b[2K" in fresh.ok("pull", "--progress", "tty", "typed")


def test_an_unknown_kind_of_progress_is_refused(fresh: Pyrun) -> None:
    done = fresh("pull", "--progress", "fancy", "typed")
    assert done.returncode == 125
    assert "auto, json, none, plain or tty" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--disable-content-trust"], ""),
        (["--disable-content-trust=true"], ""),
        (["--disable-content-trust=false"], "signatures are not"),
    ],
)
def test_content_trust_may_be_disabled_which_it_is(
    fresh: Pyrun, image: Pushed, flags: list[str], says: str
) -> None:
    done = fresh("pull", "-q", *flags, "typed")
    assert (done.returncode, done.stdout) == (0, "docker.io/library/typed:latest\n")
    assert says in done.stderr
    assert bool(done.stderr) == bool(says)


def test_a_wait_is_counted_down_and_a_broken_layer_finished(
    fresh: Pyrun, serve: Serve, image: Pushed
) -> None:
    blob = f"GET .*/blobs/{image.layer_digests[0]}"
    serve(Fault(close_after(100_000), blob, times=1))
    env = {**fresh.env, "PYRUN_RETRY_DELAY": "2"}
    said = fresh.ok("pull", "typed", env=env)
    states = re.findall(f"^{short(image.layer_digests[0])}: (.*)$", said, re.MULTILINE)
    assert states == [
        "Pulling fs layer", "Downloading", "Retrying in 2 seconds", "Retrying in 1 second", "Downloading",
        "Verifying Checksum", "Download complete", "Extracting", "Pull complete",
    ]  # fmt: skip


def test_each_layer_has_a_bar_on_a_terminal(fresh: Pyrun, serve: Serve, image: Pushed) -> None:
    serve(Fault(drip(64 << 10, 0.15), f"GET .*/blobs/{image.layer_digests[0]}"))
    with terminal(fresh, "pull", "typed", size=(30, 100)) as window:
        window.read_until(rb"Downloading \[=+> +\] +\d+(\.\d+)?kB/\d+(\.\d+)?kB")
        window.read_until(rb"Status: Downloaded newer image for typed:latest")
        assert window.wait() == 0


# --- all tags


@pytest.fixture(scope="module")
def many(registry: Registry) -> list[Pushed]:
    return [
        registry.push_image("library/many", tag, [tar({tag: tag.encode()})], other_platform=False)
        for tag in ("1", "2", "2.1")
    ]


def test_all_tags_of_a_repository_are_pulled(fresh: Pyrun, many: list[Pushed]) -> None:
    said = fresh.ok("pull", "-a", "many").splitlines()
    for pushed in many:
        assert f"{pushed.tag}: Pulling from library/many" in said
        assert f"Digest: {pushed.digest}" in said
    assert said[-2:] == ["Status: Downloaded newer image for many", "docker.io/library/many"]
    assert set(fresh.ok("images", "-q", "--no-trunc", "many").split()) == {p.config_digest for p in many}
    assert "Status: Image is up to date for many" in fresh.ok("pull", "--all-tags", "many")
    assert fresh.ok("pull", "-aq", "many") == "docker.io/library/many\n"


def test_events_of_all_tags_end_with_one_for_each(fresh: Pyrun, many: list[Pushed]) -> None:
    events = [json.loads(line) for line in fresh.ok("pull", "-a", "--progress=json", "many").splitlines()]
    assert {event["reference"]: event["digest"] for event in events if "reference" in event} == {
        f"docker.io/library/many:{pushed.tag}": pushed.digest for pushed in many
    }


@pytest.mark.parametrize("name", ["many:1", f"many@sha256:{'0' * 64}", "many:1@sha256:" + "0" * 64])
def test_all_tags_of_one_tag_is_a_contradiction(fresh: Pyrun, name: str) -> None:
    done = fresh("pull", "-a", name)
    assert (done.returncode, done.stdout) == (125, "")
    assert f"tag can't be used with --all-tags/-a: '{name}' has one" in done.stderr


def test_all_tags_of_nothing_is_an_error(fresh: Pyrun) -> None:
    done = fresh("pull", "-a", "nothing/of-that-name")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nothing/of-that-name" in done.stderr


# --- how it ends


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_pull_that_is_interrupted_says_nothing_and_leaves_no_process(
    fresh: Pyrun, serve: Serve, image: Pushed, how: signal.Signals, code: int
) -> None:
    serve(Fault(drip(1000, 0.05), f"GET .*/blobs/{image.layer_digests[0]}"))
    pull = fresh.start("pull", "typed", stdout=-1, stderr=-1, text=True)
    while "Downloading" not in pull.stdout.readline():
        assert pull.poll() is None
    pull.send_signal(how)
    _, errors = pull.communicate(timeout=10)
    assert pull.returncode in (code, -how)
    assert "Traceback" not in errors
    assert "typed" not in fresh.ok("images")


def test_the_registrys_limit_is_told_with_its_seconds(fresh: Pyrun, serve: Serve, image: Pushed) -> None:
    serve(
        Fault(
            status(429, b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}', retry_after="900"),
            "/manifests/",
        )
    )
    done = fresh("pull", "typed")
    assert done.returncode == 1
    assert "slow down" in done.stderr
    assert "900" in done.stderr or "15 min" in done.stderr
