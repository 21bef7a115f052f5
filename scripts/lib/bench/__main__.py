"""The command behind scripts/bench."""

from __future__ import annotations

import sys

from . import pull, start

if __name__ == "__main__":
    sys.exit({"start": start.main, "pull": pull.main}[sys.argv[1]](sys.argv[2:]))
