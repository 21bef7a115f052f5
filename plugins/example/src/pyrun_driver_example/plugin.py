"""What the entry point names. Apart from the driver, so that `pyrun run` imports the driver alone."""

from pyrun.storage.hookspecs import hookimpl

from .driver import ExampleDriver


@hookimpl
def pyrun_storage_drivers():
    return [ExampleDriver]
