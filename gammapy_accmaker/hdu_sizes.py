"""What the headers of a FITS file claim is held against the length of the file, before anything is allocated."""

from __future__ import annotations

import warnings
from pathlib import Path

from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from gammapy_accmaker.errors import InputError

__all__ = ["check_hdu_sizes"]

MAX_BYTES = 2**31  # of one HDU of events; a run has a hundredth of it
MAX_AXES = 999
BITS = (8, 16, 32, 64, -32, -64)
COMPRESSION = 1100  # no gzip file grows more
COMPRESSED = (b"\x1f\x8b", b"BZ", b"\xfd7", b"PK", b"\x1f\x9d")


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
        if file.read(2) in COMPRESSED:
            length *= COMPRESSION
    left = None if until is None else set(until)
    try:
        with warnings.catch_warnings(), _open(path) as hdulist:
            # that a file is truncated is a warning of astropy, and an error here
            warnings.simplefilter("ignore", AstropyWarning)
            for hdu in hdulist:
                _check(path, hdu, length, max_bytes)
                if until is None or hdu.name in until:
                    _check_kind(path, hdu)
                if left is not None:
                    left.discard(hdu.name)
                    if not left:
                        return
    except InputError:
        raise
    except Exception as error:  # damaged headers make astropy raise many kinds
        raise InputError(f"{path} is no FITS file or is damaged ({type(error).__name__}: {error})") from error
    if left:
        raise InputError(f"{path} has no HDU {' and '.join(sorted(left))}; it is cut off, or its index table is wrong")


def _open(path):
    return fits.open(path, memmap=False, lazy_load_hdus=True, disable_image_compression=True)


def _check(path, hdu, length, max_bytes):
    header = hdu.header
    naxis, bits = header.get("NAXIS", 0), header.get("BITPIX", 8)
    # not more than the standard allows, before anything is made of so many
    for key, number in (("NAXIS", naxis), ("TFIELDS", header.get("TFIELDS", 0))):
        if not isinstance(number, int) or not 0 <= number <= MAX_AXES:
            raise InputError(f"{path}: the header of HDU {hdu.name!r} claims {key} = {number!r}; the file is damaged")
    numbers = [header.get("PCOUNT", 0), header.get("GCOUNT", 1)]
    numbers += [header.get(f"NAXIS{k}", 0) for k in range(1, naxis + 1)]
    if bits not in BITS or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise InputError(
            f"{path}: the header of HDU {hdu.name!r} claims {bits} bits and sizes of {numbers}; the file is damaged"
        )
    size = hdu.size
    if size > min(max_bytes, length):
        raise InputError(
            f"{path}: the header of HDU {hdu.name!r} claims {size} bytes of data, but the file can hold "
            f"{min(max_bytes, length)}; it is truncated or damaged"
        )


def _check_kind(path, hdu):
    """What would be made of the data has the size of the data."""
    if hdu.header.get("ZIMAGE"):
        raise InputError(f"{path}: HDU {hdu.name!r} is a compressed image, which is not read here")
    if isinstance(hdu, fits.BinTableHDU):
        row = hdu.columns.dtype.itemsize
        if row != hdu.header["NAXIS1"]:
            raise InputError(
                f"{path}: the columns of HDU {hdu.name!r} claim rows of {row} bytes, but a row has "
                f"{hdu.header['NAXIS1']}; the file is damaged"
            )
