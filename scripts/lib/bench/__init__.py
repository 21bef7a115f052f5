"""Times pyrun beside other engines: in one interleaved run, on a quiet machine, as ratios."""
