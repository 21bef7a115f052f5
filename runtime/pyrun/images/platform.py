"""Platforms: what the host runs, and which manifest of an index suits it (OCI image spec, image-index.md)."""

from __future__ import annotations

import os
import sys

from ..errors import PlatformUnavailable, UsageError
from .printable import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Descriptor

# uname(2) machine -> (architecture, variant), by the names of Go's GOARCH.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", "v8"),
    "aarch64_be": ("arm64be", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "armv5tejl": ("arm", "v5"),
    "ppc64le": ("ppc64le", ""),
    "ppc64": ("ppc64", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
    "mips64": ("mips64le" if sys.byteorder == "little" else "mips64", ""),
}
# What people write, as containerd's platform specifiers allow it.
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_ARCHITECTURES = frozenset({architecture for architecture, _ in _MACHINES.values()} | {"mips64", "mips64le"})
_SYSTEMS = frozenset({"linux", "windows", "darwin", "freebsd"})

# The CPU flags each x86-64 level adds (x86-64 psABI); /proc/cpuinfo calls LZCNT abm and OSXSAVE xsave.
_AMD64_LEVELS = (
    ("v2", {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
    ("v3", {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}),
    ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
)


class Platform:
    """``os/architecture[/variant]``. ``strict`` is False for the host's own, which accepts its 32-bit kin."""

    __slots__ = ("architecture", "os", "strict", "variant")

    def __init__(self, os: str, architecture: str, variant: str = "", *, strict: bool = True) -> None:
        self.os = os
        self.architecture = architecture
        self.variant = variant
        self.strict = strict

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def __repr__(self) -> str:
        return f"Platform({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Platform):
            return NotImplemented
        return str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """``os/arch[/variant]``, or ``arch`` alone for linux. Raises `UsageError`."""
        parts = text.lower().split("/")
        allowed = "abcdefghijklmnopqrstuvwxyz0123456789._-"
        if not 1 <= len(parts) <= 3 or not all(part and set(part) <= set(allowed) for part in parts):
            raise UsageError(f"{text!r} is not a platform", hint="Write it as linux/arm64/v8 or linux/amd64.")
        if len(parts) == 1:
            if parts[0] in _SYSTEMS:
                own = host()
                return cls(parts[0], own.architecture)
            if parts[0] not in _ALIASES and parts[0] not in _ARCHITECTURES:
                known = ", ".join(sorted(_ARCHITECTURES))
                raise UsageError(f"{text!r} is not an architecture", hint=f"Known ones: {known}.")
            parts.insert(0, "linux")
        architecture, variant = _ALIASES.get(parts[1], (parts[1], ""))
        if len(parts) == 3:
            variant = parts[2]
        if variant and variant[0].isdigit():
            variant = "v" + variant
        return cls(parts[0], architecture, variant)


def host() -> Platform:
    """The platform of this kernel and CPU."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    if architecture == "amd64":
        variant = _amd64_level(_cpu_flags())
    return Platform("linux", architecture, variant, strict=False)


def wanted(text: str | None = None) -> Platform:
    """The platform asked for: ``text``, else DOCKER_DEFAULT_PLATFORM, else the host's."""
    text = text or os.environ.get("DOCKER_DEFAULT_PLATFORM")
    return Platform.parse(text) if text else host()


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def _amd64_level(flags: set[str]) -> str:
    level = "v1"
    for name, needed in _AMD64_LEVELS:
        if not needed <= flags:
            break
        level = name
    return level


def _steps_down(variant: str, lowest: int) -> list[str]:
    number = variant[1:]
    if not (variant.startswith("v") and number.isdecimal()):
        return [variant]
    return [f"v{n}" for n in range(int(number), lowest - 1, -1)] or [variant]


def acceptable(platform: Platform) -> list[tuple[str, str]]:
    """(architecture, variant) pairs that run on ``platform``, best first, each variant in its normal form."""
    architecture, variant = normal(platform.architecture, platform.variant)
    if architecture == "arm":
        return [("arm", v) for v in _steps_down(variant, 5)]
    if architecture == "amd64":
        pairs = [("amd64", v) for v in _steps_down(variant, 1)]
        return pairs if platform.strict else [*pairs, ("386", "")]
    if architecture == "arm64":
        pairs = [("arm64", v) for v in dict.fromkeys((variant, "v8"))]
        return pairs if platform.strict else [*pairs, *(("arm", v) for v in _steps_down("v8", 5))]
    return [(architecture, variant)]


def normal(architecture: str, variant: str) -> tuple[str, str]:
    """Fill in the variant that an empty one stands for: arm v7, arm64 v8, amd64 v1."""
    if not variant:
        variant = {"arm": "v7", "arm64": "v8", "amd64": "v1"}.get(architecture, "")
    elif variant[0].isdigit():
        variant = "v" + variant
    return architecture, variant


def suits(platform: Platform, os: str, architecture: str, variant: str) -> bool:
    """Whether an image of this os, architecture and variant runs on ``platform``."""
    return os == platform.os and normal(architecture, variant) in acceptable(platform)


def choose(manifests: Sequence[Descriptor], platform: Platform, name: str) -> Descriptor:
    """The descriptor in an index that suits ``platform`` best; the first of equals.

    Entries of platform unknown/unknown are attestations and never chosen. An entry without a platform is
    taken only when nothing else suits and it is the only one. Raises `PlatformUnavailable` naming the image
    ``name`` and listing what there is.
    """
    ranks = {pair: rank for rank, pair in enumerate(acceptable(platform))}
    best: tuple[int, Descriptor] | None = None
    listed: list[str] = []
    nameless: list[Descriptor] = []
    for manifest in manifests:
        it = manifest.platform
        if it is None:
            nameless.append(manifest)
            continue
        if it.os == "unknown" and it.architecture == "unknown":
            continue
        listed.append(printable(str(Platform(it.os, it.architecture, it.variant)), 64))
        rank = ranks.get(normal(it.architecture, it.variant))
        if it.os == platform.os and rank is not None and (best is None or rank < best[0]):
            best = (rank, manifest)
    if best:
        return best[1]
    if len(nameless) == 1 and not listed:
        return nameless[0]
    there = ", ".join(dict.fromkeys(listed)) or "none"
    raise PlatformUnavailable(
        f"{name} has no image for {platform}", hint=f"Its platforms: {there}. Choose one with --platform."
    )
