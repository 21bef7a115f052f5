"""Containers: records, names, the OCI runtime spec of each, and supervision of the one in the foreground."""
