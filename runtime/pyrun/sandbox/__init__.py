"""OCI runtime spec → process. Two steps, as the OCI runtime's create and start:

    box = Box(spec, ids)        # the namespaces exist; a process waits in them, doing nothing
    ...                         # the caller mounts the rootfs through box.userns, records box.pid
    box.start(rootfs)           # rootfs, mounts, identity, execve; returns when the program runs

Nothing here knows of images or of container names.
"""
