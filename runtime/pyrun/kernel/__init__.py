"""One thin wrapper a system call; the only ctypes in the project; every call can be traced.

Modules are named for the kernel's own nouns. Each wrapper does one call and raises OSError with the call's
name; nothing here decides anything. Set `pyrun.kernel.syscall.trace` to watch.
"""
