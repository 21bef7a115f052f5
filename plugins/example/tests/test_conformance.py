from pyrun.testing import StorageConformance
from pyrun_driver_example.driver import ExampleDriver
class TestExample(StorageConformance): driver = ExampleDriver
