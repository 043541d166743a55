"""What the headers of a FITS file claim is held against the length of the file, before anything is allocated."""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from gammapy_accmaker.errors import InputError

__all__ = ["check_hdu_sizes"]

MAX_BYTES = 2**31  # of one HDU of events; a run has a hundredth of it
MAX_AXES = 999  # and columns, of the FITS standard
BITS = (8, 16, 32, 64, -32, -64)
COMPRESSION = 1100  # no gzip file grows more
COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
BLOCK = 2880


def check_hdu_sizes(path: Path, max_bytes: int = MAX_BYTES, until: set[str] | None = None) -> None:
    """Raise where a header claims more data than the file can hold, fewer than none, or more than ``max_bytes``.

    Parameters
    ----------
    path : `~pathlib.Path`
    max_bytes : int
        Of the data of one HDU.
    until : set of str, optional
        Names of the HDUs that will be read; those behind the last of them are not looked at. Default: all are.
        One that is not there is an error.

    Raises
    ------
    InputError
        For a file that is missing, is no FITS file, or does not hold what its headers claim.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    length = path.stat().st_size
    with open(path, "rb") as file:
        opener = COMPRESSED.get(file.read(2))
    if opener is not None:
        length *= COMPRESSION
    left = None if until is None else set(until)
    try:
        # header by header: `fits.open` would make objects of what they claim
        with warnings.catch_warnings(), (opener or open)(path, "rb") as file:
            warnings.simplefilter("ignore", AstropyWarning)
            position = 0
            while file.seek(position) == position and file.peek(1) if opener else position < length:
                file.seek(position)
                header = fits.Header.fromfile(file, endcard=True)
                name = str(header.get("EXTNAME", "" if position else "PRIMARY")).strip().upper()
                size = _data_size(path, name, header)
                if size > min(max_bytes, length):
                    raise InputError(
                        f"{path}: the header of HDU {name!r} claims {size} bytes of data, but the file can hold "
                        f"{min(max_bytes, length)}; it is truncated or damaged"
                    )
                position = file.tell() + -(-size // BLOCK) * BLOCK
                if until is None or name in until:
                    _check_kind(path, name, header)
                if left is not None:
                    left.discard(name)
                    if not left:
                        return
    except InputError:
        raise
    except Exception as error:  # damaged headers make astropy raise many kinds
        raise InputError(f"{path} is no FITS file or is damaged ({type(error).__name__}: {error})") from error
    if left:
        raise InputError(f"{path} has no HDU {' and '.join(sorted(left))}; it is cut off, or its index table is wrong")


def _data_size(path, name, header):
    """Bytes of the data of an HDU, without padding."""
    naxis, bits = header.get("NAXIS", 0), header.get("BITPIX", 8)
    # not more than the standard allows, before anything is made of so many
    for key, number in (("NAXIS", naxis), ("TFIELDS", header.get("TFIELDS", 0))):
        if not isinstance(number, int) or not 0 <= number <= MAX_AXES:
            raise InputError(f"{path}: the header of HDU {name!r} claims {key} = {number!r}; the file is damaged")
    more, groups = header.get("PCOUNT", 0), header.get("GCOUNT", 1)
    axes = [header.get(f"NAXIS{k}") for k in range(1, naxis + 1)]
    if bits not in BITS or any(not isinstance(n, int) or n < 0 for n in (more, groups, *axes)):
        raise InputError(
            f"{path}: the header of HDU {name!r} claims {bits} bits and sizes of {axes}, {more}, {groups}; "
            "the file is damaged"
        )
    return abs(bits) // 8 * groups * (more + math.prod(axes)) if axes else 0


def _check_kind(path, name, header):
    """What would be made of the data has the size of the data."""
    if header.get("ZIMAGE"):
        raise InputError(f"{path}: HDU {name!r} is a compressed image, which is not read here")
    if str(header.get("XTENSION", "")).strip() == "BINTABLE":
        numbers = range(1, header["TFIELDS"] + 1)
        columns = [fits.Column(name=f"COLUMN_{k}", format=header[f"TFORM{k}"]) for k in numbers]
        row = fits.ColDefs(columns).dtype.itemsize
        if row != header["NAXIS1"]:
            raise InputError(
                f"{path}: the columns of HDU {name!r} claim rows of {row} bytes, but a row has "
                f"{header['NAXIS1']}; the file is damaged"
            )
