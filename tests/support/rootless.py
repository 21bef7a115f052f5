"""Code run as an ordinary user's pyrun runs it: as root of a user namespace, with no power over the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from pyrun.kernel import userns
from pyrun.kernel.process import CLONE_NEWUSER, setns
from pyrun.testing import children

FIRST = 1_410_000_000  # a range that no distribution gives out by itself
COUNT = 65536


def as_user(work: Callable[[], Any], *, seconds: float = 60) -> Any:
    """What ``work`` returns (as JSON has it) in a child that is root of a user namespace of ``COUNT`` ids from
    ``FIRST``, in a mount namespace of its own. What it raises is an AssertionError here. Import before what it
    needs: it may not be able to read the interpreter's files."""

    def inside() -> Any:
        maps = [userns.IdMap(0, FIRST, COUNT)]
        namespace = userns.hold(maps, maps)
        setns(namespace, CLONE_NEWUSER)
        os.close(namespace)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        children.private_mounts()
        return work()

    return children.run(inside, seconds=seconds).result()
