"""Files are written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

from gammapy_accmaker.errors import InputError

__all__ = ["write_atomically"]


def write_atomically(path: Path, write: Callable[[Path], object], overwrite: bool) -> None:
    """Call ``write`` with a temporary path in the same folder, then move the file into place.

    An existing file is replaced only with ``overwrite``, and never left half written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass overwrite=True to replace it")
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
