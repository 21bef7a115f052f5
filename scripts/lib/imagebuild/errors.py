"""The one error of this package: its text is all that a person sees."""


class BuildError(Exception):
    """An image can't be built, written or pushed; the message says why and what to do."""
