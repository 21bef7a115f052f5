"""Experiments with whole engines: drivers measured and compared. Nothing of the engine needs this room."""
