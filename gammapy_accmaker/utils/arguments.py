"""Checks of the arguments of public functions: the error names the argument, what came and what is needed."""

from __future__ import annotations

import operator

from gammapy_accmaker.errors import InputError


def check_choice(value, choices, argument: str):
    """The value, if it is one of the texts that are known."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{argument}: got {_short(value)}, but {' or '.join(map(repr, choices))} is needed")
    return value


def check_kind(value, kind, argument: str, needed: str):
    """The value, if it is of a type, or of one of a union of types."""
    if not isinstance(value, kind):
        raise InputError(f"{argument}: got {type(value).__name__}, but {needed} is needed")
    return value


def check_whole(value, least: int, argument: str, what: str = "a whole number") -> int:
    """The value as an int, if it is a whole number and not too small."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"{argument}: got {_short(value)}, but {what} >= {least} is needed")
    return number


def _short(value):
    text = repr(value)
    return text if len(text) < 80 else type(value).__name__
