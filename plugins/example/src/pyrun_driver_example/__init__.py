"""A pyrun storage driver to copy."""
