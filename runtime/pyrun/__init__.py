"""pyrun: a daemonless container engine whose storage drivers are plugins."""

__version__ = "0.1.0"
