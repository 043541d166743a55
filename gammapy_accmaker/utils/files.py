"""Files and folders are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from gammapy.utils.scripts import make_path

from gammapy_accmaker.errors import InputError, InputTypeError


def as_path(path: str | Path, argument: str = "path") -> Path:
    """A path, with the environment variables in it replaced; an error for anything else."""
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise InputTypeError(f"{argument}: got {path!r}, but the path of a file or folder is needed")
    return make_path(path)


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


def check_free(path: Path, overwrite: bool, holds: str | None = None) -> None:
    """Raise an `InputError` where an output cannot be written, before the work for it starts.

    Parameters
    ----------
    path : `~pathlib.Path`
        File or folder to come.
    overwrite : bool
        Whether an earlier one may be replaced.
    holds : str, optional
        Name of a file in a folder; a folder without it was not written by us, and is never replaced.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; give another output, or overwrite it (--overwrite, overwrite=True)")
    if path.exists() and (path.is_dir() if holds is None else not (path / holds).is_file()):
        raise InputError(f"{path} exists and is no earlier output; give another output")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.absolute().parent}; make it first")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path}: the folder {path.absolute().parent} cannot be written to; give another output")


def write_folder_atomically(path: Path, write: Callable[[Path], object], overwrite: bool, holds: str) -> None:
    """Call ``write`` with an empty folder beside ``path``, then move it into place; arguments as in `check_free`."""
    path = Path(path).absolute()
    check_free(path, overwrite, holds)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / path.name
        folder.mkdir()
        write(folder)
        if path.exists():
            path.rename(Path(scratch) / "replaced")
        folder.rename(path)
