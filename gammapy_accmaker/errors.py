"""The exceptions that this package raises; each says what came, what is needed and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "AcceptanceError",
    "InputError",
    "InputTypeError",
    "ObservationError",
    "FitError",
    "NotFittedError",
    "reading",
]


class AcceptanceError(Exception):
    """Parent of every exception of this package."""


class InputError(AcceptanceError, ValueError):
    """An argument, a configuration value or a file that cannot be used."""


class InputTypeError(InputError, TypeError):
    """Something of the wrong kind, where gammapy's own classes raise a `TypeError`."""


class ObservationError(InputError):
    """One observation that cannot be used; a fit leaves it out, names it and goes on."""


class FitError(AcceptanceError, RuntimeError):
    """A fit that did not reach a usable result."""


class NotFittedError(AcceptanceError, RuntimeError):
    """A background was asked for before there was a model."""


@contextmanager
def reading(what: str, remedy: str = "", kind: type[AcceptanceError] = InputError) -> Iterator[None]:
    """What the readers of other packages raise, of many kinds, as an error that says what cannot be read."""
    try:
        yield
    except AcceptanceError:
        raise
    except Exception as error:
        raise kind(f"{what} ({type(error).__name__}: {error}){remedy}") from error
