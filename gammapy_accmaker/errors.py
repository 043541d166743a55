"""The exceptions that this package raises; each says what came, what is needed and the remedy."""

__all__ = ["AcceptanceError", "InputError", "InputTypeError", "ObservationError", "FitError", "NotFittedError"]


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
