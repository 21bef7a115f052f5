"""Images of other platforms than the host's: why they can't run, or by what they do."""

from __future__ import annotations

from ..errors import Unsupported
from ..images.platform import Platform, host, suits
from ..images.printable import printable
from ..sandbox import binfmt


def check_runs(name: str, platform: str, *, asked: bool, directory: str = binfmt.DIRECTORY) -> str:
    """Raise `Unsupported` where programs of the image ``name``, for ``platform``, can't run here: neither are they
    the processor's, nor does the kernel know an emulator that a container can use.

    Returns a warning for the user, as docker gives it, where they run by an emulator that was not ``asked`` for with
    --platform; else "".
    """
    own = host()
    system, architecture, variant = (*platform.split("/"), "", "")[:3]
    if suits(own, system, architecture, variant):
        return ""
    its, ours = printable(platform, 64), str(Platform(own.os, own.architecture, own.variant))
    what = f"{name} is an image for {its}, and this host runs {ours}"
    again = f"`pyrun run --platform {own.os}/{own.architecture} {name}` gets the one for this host, if there is one"
    if system != own.os:
        raise Unsupported(what, hint=f"{again}.")
    if architecture == own.architecture:
        raise Unsupported(f"{what}, whose processor lacks what {variant} needs", hint=f"{again}.")
    found = binfmt.emulator(architecture, directory)
    if found is None:
        raise Unsupported(
            f"{what}; no emulator for {printable(architecture, 40)} is registered with the kernel (binfmt_misc)",
            hint=f"{again}; or install an emulator, such as qemu-user-static with binfmt-support.",
        )
    if not found.fixed:
        raise Unsupported(
            f"{what}; the emulator {found.path} is registered without the flag F, so that containers can't reach it",
            hint=f"{again}; or register {found.name} again with the flag F.",
        )
    if asked:
        return ""
    return (
        f"WARNING: The requested image's platform ({its}) does not match the detected host platform ({ours})"
        " and no specific platform was requested"
    )
