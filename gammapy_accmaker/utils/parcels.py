"""Values on their way to another process.

Their large arrays go through a file, which is not written to the disk in the short time that it lasts: a pipe takes
four times as long.
"""

from __future__ import annotations

import io
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

_LARGE = 2**14  # bytes of an array


class ParcelLostError(Exception):
    """Its file is gone: somebody has tidied up the folder of temporary files."""


@dataclass(frozen=True)
class Parcel:
    """A value as it is sent.

    Attributes
    ----------
    content : bytes
        All but the large arrays.
    path : str, optional
        Of the file with these, where there are some.
    sizes : tuple of int
        Of each of them, in bytes.
    """

    content: bytes
    path: str | None = None
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Any, folder: str, is_answer: bool = False) -> Parcel:
        """Pack a value, with a file in a folder; errors of many kinds for one that another process cannot make.

        An answer was made without the user's script, and may hold its name.
        """
        large: list[memoryview] = []

        def goes_along(buffer):
            if (memory := buffer.raw()).nbytes < _LARGE:
                return True
            return large.append(memory)

        content = _dumped(value, is_answer, goes_along)
        if not large:
            return cls(content)
        path = None
        try:
            handle, path = tempfile.mkstemp(dir=folder)
            with open(handle, "wb") as file:
                for memory in large:
                    file.write(memory)
        except OSError:  # there is no room in the folder
            if path is not None:
                os.unlink(path)
            return cls(_dumped(value, is_answer))
        return cls(content, path, tuple(memory.nbytes for memory in large))

    def open(self) -> Any:
        """The value; a `ParcelLostError` where its file is gone."""
        arrays = []
        if self.path is not None:
            try:
                with open(self.path, "rb", buffering=0) as file:
                    arrays = [np.fromfile(file, np.uint8, size) for size in self.sizes]
            except FileNotFoundError as error:
                raise ParcelLostError(self.path) from error
        return ForkingPickler.loads(self.content, buffers=arrays)

    def take(self) -> Any:
        """The value; its file is gone then."""
        value = self.open()
        self.discard()
        return value

    def discard(self) -> None:
        """Remove the file, where it is still there."""
        if self.path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)


def is_known_elsewhere(value: Any) -> bool:
    """Whether another process can make the same value."""
    try:
        _dumped(value)
    except Exception:  # what is nothing for another process raises many kinds
        return False
    return True


def _dumped(value, is_answer=False, goes_along=None):
    file = io.BytesIO()
    ForkingPickler(file, 5, True, goes_along).dump(value)
    content = file.getvalue()
    if b"__main__" in content and not is_answer:
        raise ValueError("what __main__ defines is not known to another process")
    return content
