"""Tests of scripts/: a package, so that its modules share names with no other room's."""
