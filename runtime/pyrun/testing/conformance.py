"""The conformance suite of storage drivers, as a class for pytest to collect.

from pyrun.testing import StorageConformance

class TestMine(StorageConformance):
    driver = MyDriver

Cases are methods ``test_<number>_<sentence>``; the numbers are those of the list in docs/storage-conformance.md,
a letter marks a case that was added to it or is a part of one. A case expects what the driver's probe claims (its
`pyrun.storage.contract.Caps`), whatever the driver is called; a claim that does not hold fails, and so does a
denial of what works. What no flag tells and the driver knows to be wrong, its probe declares by the case's number
(``Verdict.found["flaws"]``): that case must fail.

What the layers should show is decided by a plain directory to which they are applied, and the core cases spell it
out beside that.

Sections: A contract, B layer semantics, C live POSIX behaviour, D changes, commit and usage, E isolation and
faults.
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
