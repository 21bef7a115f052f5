"""Images of as many layers as overlayfs stacks, and of one more."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from support.pyrun import Pyrun
from support.registry import HOST_ARCHITECTURE, Pushed, Registry, tar

DEPTH = 500


@pytest.fixture(scope="module")
def busybox_layers() -> list[bytes]:
    """The tars of the real busybox image, bottom to top."""
    layout = Path(os.environ["PYRUN_TEST_IMAGES"])

    def blob(digest: str) -> bytes:
        return (layout / "blobs" / digest.replace(":", "/")).read_bytes()

    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    names = {e["annotations"]["org.opencontainers.image.ref.name"]: e["digest"] for e in entries}
    document = json.loads(blob(names["busybox:latest"]))
    while "manifests" in document:
        mine = [
            m for m in document["manifests"] if m.get("platform", {}).get("architecture") == HOST_ARCHITECTURE
        ]
        document = json.loads(blob((mine or document["manifests"])[0]["digest"]))
    tars = []
    for layer in document["layers"]:
        data = blob(layer["digest"])
        tars.append(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    return tars


@pytest.fixture(scope="module")
def deep(registry: Registry, busybox_layers: list[bytes]) -> Pushed:
    more = [
        tar({f"deep/{n:03}": b"%d" % n, "deep/last": b"%d" % n, f"deep/.wh.{n - 1:03}": b""})
        for n in range(DEPTH - len(busybox_layers))
    ]
    # The directory is listed by none of them: 0755, as a layer that mends it would say, too.
    return registry.push_image(
        "deep/max", "latest", [*busybox_layers, *more], {"Cmd": ["sh"]}, other_platform=False
    )


def test_an_image_of_500_layers_runs(empty: Pyrun, deep: Pushed, busybox_layers: list[bytes]) -> None:
    empty.ok("pull", "-q", "deep/max", timeout=120)
    assert len(json.loads(empty.ok("inspect", "deep/max"))[0]["RootFS"]["Layers"]) == DEPTH
    top = DEPTH - len(busybox_layers) - 1
    out = empty.sh("ls /deep; cat /deep/last; echo; echo new >/deep/last; cat /deep/last", image="deep/max")
    assert out.split() == [f"{top:03}", "last", str(top), "new"]
    assert empty.sh("cat /deep/last", "--userns", "host", image="deep/max") == str(top)


def test_an_image_of_501_layers_is_refused_with_the_limit_before_anything_is_written(
    empty: Pyrun, registry: Registry, deep: Pushed
) -> None:
    layer = tar({"one/more": b""})
    registry.push_image("deep/more", "latest", [layer] * (DEPTH + 1), other_platform=False)
    done = empty("pull", "-q", "deep/more")
    assert done.returncode == 1
    assert "501 layers" in done.stderr
    assert "at most 500" in done.stderr
    assert not list(empty.root.glob("layers/overlay/[0-9a-f]*"))
    assert "deep/more" not in empty.ok("images")
