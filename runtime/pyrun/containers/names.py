"""Container names: the check of a given one, and random ones. On the path of `run`."""

from __future__ import annotations

import os

from ..errors import UsageError

_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_REST = _FIRST | frozenset("_.-")
_MAX = 255

_ADJECTIVES = (
    "able amber apt bold brave bright brisk calm candid clear clever cosmic crisp curious daring deft eager "
    "early earnest fair fine fleet fluent fond frank free fresh gentle glad golden grand happy hardy honest "
    "humble jolly keen kind lively loyal lucid lucky merry mild modest neat nimble noble open patient placid "
    "plucky polite proud quick quiet rapid ready robust serene sharp shiny silent sincere smart snug sober "
    "solid spry stable steady still stoic sunny swift tidy tranquil trusty upbeat valiant vivid warm wise witty "
    "young zesty"
).split()
# Scientists and engineers, by the names under which their work is known.
_SCIENTISTS = (
    "abel agnesi archimedes babbage bell bernoulli bohr boole brahmagupta cantor carson cauchy cerf chandrasekhar "
    "church copernicus cori curie darwin dijkstra dirac einstein engelbart euclid euler faraday fermat fermi "
    "feynman fibonacci fourier franklin galileo galois gauss germain goldberg goodall hamilton hawking heisenberg "
    "herschel hertz hilbert hodgkin hooke hopper hypatia jackson joliot johnson kepler khayyam khwarizmi knuth "
    "kovalevskaya lagrange lamarr lamport laplace leavitt leibniz liskov lovelace maxwell mccarthy mcclintock "
    "meitner mendel mendeleev mirzakhani morse napier nash newton nightingale nobel noether pascal pasteur "
    "perlman planck poincare ptolemy ramanujan raman riemann ritchie rosalind sagan shannon sinoussi somerville "
    "tesla thompson torvalds turing vaughan volta wiles wing wozniak wu yalow yonath"
).split()


def check(name: str) -> str:
    """``name`` itself, if it is one: a letter or digit, then letters, digits, ``_``, ``.`` and ``-``.

    Raises `UsageError`. Names become file names, so nothing else may pass.
    """
    if 2 <= len(name) <= _MAX and name[0] in _FIRST and all(c in _REST for c in name):
        return name
    raise UsageError(
        f"invalid container name {name!r}",
        hint=f"A name is 2 to {_MAX} letters, digits, '_', '.' and '-', and starts with a letter or digit.",
    )


def generate() -> str:
    """A random name like "nimble_noether"."""
    number = int.from_bytes(os.urandom(8), "little")
    rest, first = divmod(number, len(_ADJECTIVES))
    return f"{_ADJECTIVES[first]}_{_SCIENTISTS[rest % len(_SCIENTISTS)]}"
