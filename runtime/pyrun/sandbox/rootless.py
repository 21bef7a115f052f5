"""Rootless: the engine enters a user namespace of the calling user before it touches the store.

On the path of a rootless `run`. In that namespace the engine is root over the user's own ids: id 0 is the
user, 1.. are the ranges of /etc/subuid and /etc/subgid, mapped by the setuid programs newuidmap(1) and
newgidmap(1). Layers, with their many owners, can then be unpacked and mounted.
"""

from __future__ import annotations

import os

from ..errors import Unsupported
from ..kernel import mount as m
from ..kernel import process as p

APPARMOR_SYSCTL = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"

_APPARMOR_PROFILE = """\
This system's AppArmor allows user namespaces only to programs with a profile. Install this one as root:

  cat >/etc/apparmor.d/pyrun <<'EOF'
  abi <abi/4.0>,
  include <tunables/global>
  profile pyrun {interpreter} flags=(unconfined) {{
    userns,
    include if exists <local/pyrun>
  }}
  EOF
  apparmor_parser -r /etc/apparmor.d/pyrun
"""


def needed() -> bool:
    """Whether this process must enter a user namespace: it is not root, and is in none of its own yet."""
    return os.geteuid() != 0


def subordinate(path: str, user: str, uid: int) -> list[tuple[int, int]]:
    """(first, count) of each range that ``path`` (/etc/subuid or /etc/subgid) gives to the user."""
    found = []
    try:
        with open(path, errors="replace") as file:
            for line in file:
                fields = line.strip().split(":")
                if len(fields) == 3 and fields[0] in (user, str(uid)):
                    try:
                        found.append((int(fields[1]), int(fields[2])))
                    except ValueError:
                        continue
    except FileNotFoundError:
        pass
    return found


def enter() -> None:
    """Move this process into a user and a mount namespace of the calling user. Not undoable.

    Raises `Unsupported`, with what to do, where the host is not set up for it. The process must have one
    thread (man unshare, EINVAL).
    """
    uid, gid = os.getuid(), os.getgid()
    user = _login_name(uid)
    uids, gids = subordinate("/etc/subuid", user, uid), subordinate("/etc/subgid", user, uid)
    if not uids or not gids:
        raise Unsupported(
            f"user {user} has no subordinate ids in /etc/subuid and /etc/subgid; rootless containers need them",
            hint=f"As root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}\n"
            "(any range that nobody else has)",
        )
    programs = [_program("newuidmap"), _program("newgidmap")]
    ready_read, ready_write = os.pipe()
    me = str(os.getpid())
    helper = os.fork()
    if helper == 0:
        # newuidmap must run in the parent namespace, where it is setuid root, and as the target's user.
        try:
            os.close(ready_write)
            if os.read(ready_read, 1) == b"1":
                for program, own, ranges in ((programs[0], uid, uids), (programs[1], gid, gids)):
                    status = os.spawnv(os.P_WAIT, program, [program, me, *_extents(own, ranges)])
                    if status:
                        os._exit(1)
                os._exit(0)
        finally:
            os._exit(2)
    os.close(ready_read)
    try:
        try:
            p.unshare(p.CLONE_NEWUSER | p.CLONE_NEWNS)
        except OSError as error:
            raise Unsupported(
                f"can't make a user namespace as user {user}: {error.strerror}", hint=_remedy()
            ) from error
        os.write(ready_write, b"1")
    finally:
        os.close(ready_write)
        _, status = os.waitpid(helper, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise Unsupported(
            "newuidmap or newgidmap refused to map the subordinate ids (its message is above)",
            hint=_remedy()
            or "Both must be setuid root or carry file capabilities; /etc/subuid must list the user.",
        )
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        m.mount(None, b"/", None, m.MS_REC | m.MS_SLAVE)
    except OSError as error:
        raise Unsupported(f"the new user namespace gives no privileges: {error}", hint=_remedy()) from error


def join(pidfd: int) -> None:
    """Move this process into the user namespace that the process ``pidfd``, another pyrun of the calling user, has
    entered, and into a mount namespace of its own there. Not undoable; the process must have one thread.

    Every command enters a namespace of its own, and none has power over what runs below another's. Only from the
    host's namespace can a user get into one that he made (man user_namespaces, "Capabilities"): so this comes in
    place of `enter`. Raises OSError.
    """
    p.setns(pidfd, p.CLONE_NEWUSER)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    p.unshare(p.CLONE_NEWNS)
    m.mount(None, b"/", None, m.MS_REC | m.MS_SLAVE)


def _extents(own: int, ranges: list[tuple[int, int]]) -> list[str]:
    """The arguments of newuidmap: id 0 is the user's own, then the subordinate ranges from 1 on."""
    arguments = ["0", str(own), "1"]
    inside = 1
    for first, count in ranges:
        arguments += [str(inside), str(first), str(count)]
        inside += count
    return arguments


def _login_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _program(name: str) -> str:
    for directory in ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin"):
        if os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise Unsupported(
        f"{name} is not installed, which rootless containers need",
        hint="Install the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora).",
    )


def _remedy() -> str:
    """What stands in the way of user namespaces on this host, as far as its sysctls tell; "" if nothing."""
    if _sysctl(APPARMOR_SYSCTL) == "1":
        import sys

        return _APPARMOR_PROFILE.format(interpreter=os.path.realpath(sys.executable))
    if _sysctl("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "As root: sysctl kernel.unprivileged_userns_clone=1"
    if _sysctl("/proc/sys/user/max_user_namespaces") == "0":
        return "As root: sysctl user.max_user_namespaces=15000"
    return ""


def _sysctl(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""
