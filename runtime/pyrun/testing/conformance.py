"""The conformance suite of storage drivers, as a class for pytest to collect.

from pyrun.testing import StorageConformance

class TestMine(StorageConformance):
    driver = MyDriver

A case expects what the driver's probe claims (its `pyrun.storage.contract.Caps`), whatever the driver is called; a
claim that does not hold fails, and so does a denial of what works. What no flag tells and the driver knows to be
wrong, its probe declares by the case's number (``Verdict.found["flaws"]``): that case must fail. What the layers
should show is decided by a plain directory to which they are applied, and the core cases spell it out beside that.

Cases are methods ``test_<number>_<sentence>``. A letter after the number marks a part of the case, or one that was
added to it. The numbers:

A contract            1 probe gives a verdict, wherever, as whoever, again · 2 also on a disk that takes nothing
                      3 options · 4 the mount's descriptor · 5 no layers · 6 a layer through a rootfs · 7 EROFS
                      8 order of ingest · 9 chains · 10 remove · 11 what others keep · 12 max_layers
                      13 a layer twice · 14 paths
B layer semantics     15 deletions · 16 made again · 17 opaque · 18 over three layers · 19 of nothing
                      20 in one layer; 20a random layers · 21 other kinds · 22 owners · 23 permissions
                      24 parents; 24c opaque root · 25 hard links; 26 written · 27 same size and time
                      28 escapes · 29 attributes, ACLs · 30 capabilities · 31 a union's attributes · 32 sparse
                      33 special files · 34 setuid · 35 names; 35a ".wh."; 35b depth · 36 times · 37 sizes
C live POSIX          38 open · 39 rename of a directory · 40 others · 41 of a file · 42 removal · 43 truncation
                      44 readdir · 45, 46 inodes · 47 open descriptors · 48 mappings · 49 locks · 50 unlinked
                      51 O_TMPFILE · 52 sockets · 53 getcwd · 54 exec
D changes and usage   55 changes · 56 reverted ones · 57 commit and ingest · 58 the same bytes · 59 while running
                      60 usage · 61 ids of an idmapped commit (the number was for a method that the contract lost)
E isolation, faults   62 two containers · 63 fifty · 64 one blob at once · 65 SIGKILL · 66 mount again
                      67 power cut · 68 ENOSPC · 69 quota · 70 in use · 71 corrupt blobs · 72 lazy · 73 idmap
                      74 user namespaces · 75 foreign stores · 76 random lives of a container
"""

from __future__ import annotations

import pytest

# Failed assertions of the cases are explained as those of test modules are; before they are imported.
pytest.register_assert_rewrite(
    *(
        f"pyrun.testing.{name}"
        for name in (
            "fixtures",
            "oracle",
            "contract_cases",
            "layer_cases",
            "live_cases",
            "live_files",
            "twins",
            "change_cases",
            "fault_cases",
            "stateful",
            "machine",
            "soundness",
        )
    )
)

from .change_cases import ChangeCases  # noqa: E402
from .contract_cases import ContractCases  # noqa: E402
from .fault_cases import FaultCases  # noqa: E402
from .fixtures import StoreFixtures  # noqa: E402
from .layer_cases import LayerCases  # noqa: E402
from .live_cases import LiveCases  # noqa: E402
from .stateful import StatefulCases  # noqa: E402


class StorageConformance(
    StoreFixtures, ContractCases, LayerCases, LiveCases, ChangeCases, FaultCases, StatefulCases
):
    """Set ``driver`` in a subclass; its name must start with "Test" for pytest to collect it.

    driver     the class under test
    options    its options, as in the configuration
    root       the directory below which each case gets a store of its own; made if missing. Default: the
               environment variable PYRUN_CONFORMANCE_ROOT, else pytest's temporary directory. Which file system
               that is on decides what a driver can do there
    must_work  a probe that refuses this root fails every case; otherwise they are skipped, with its reason
    long       full sizes and rounds for the cases that have smaller ones by default; also by the environment
               variable PYRUN_CONFORMANCE_LONG=1
    """
