"""What the headers of a FITS file claim is held against the length of the file, before anything is allocated.

Tables of events are read here in one pass over their file, without the objects that astropy makes of every column.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from gammapy_accmaker.errors import InputError, reading

_MAX_BYTES = 2**31  # of one HDU of events; a run has a hundredth of it
_MAX_AXES = 999  # and columns, of the FITS standard
_BITS = (8, 16, 32, 64, -32, -64)
_COMPRESSION = 1100  # no gzip file grows more
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
_BLOCK, _CARD = 2880, 80
_COLUMN_CARDS = (b"TFIELDS", b"TTYPE", b"TFORM", b"TUNIT", b"TSCAL", b"TZERO", b"TNULL", b"TDIM")
_COMMENTS = (b"", b"COMMENT", b"HISTORY")
_CHANGES = ("TSCAL", "TZERO", "TNULL", "TDIM")  # keywords with which a column is not what its bytes are


def check_hdu_sizes(path: Path, max_bytes: int = _MAX_BYTES) -> None:
    """Raise where a header claims more data than the file can hold, fewer than none, or more than ``max_bytes``.

    Parameters
    ----------
    path : `~pathlib.Path`
    max_bytes : int
        Of the data of one HDU.

    Raises
    ------
    InputError
        For a file that is missing, is no FITS file, or does not hold what its headers claim.
    """
    _walk(Path(path), max_bytes, None)


@dataclass(frozen=True)
class FitsTable:
    """A binary table as it is in its file.

    Attributes
    ----------
    header : mapping
        Values of the keywords, as those of `~astropy.io.fits.Header`.
    content : bytes
        Header and data.
    start : int
        Where in it the data begin.
    rows : int
    """

    header: Mapping[str, Any]
    content: bytes
    start: int
    rows: int

    def to_hdu(self) -> fits.BinTableHDU:
        """What astropy makes of it."""
        return fits.BinTableHDU.fromstring(self.content)

    def columns(self, names: tuple[str, ...]) -> dict[str, tuple[np.ndarray, str | None]] | None:
        """Values and units of columns of one number a row; None where one of them is not there or is of another kind:
        scaled, or with a number that stands for none, or of vectors."""
        dtype, units = self.layout
        if not units.keys() >= set(names):
            return None
        values = np.frombuffer(self.content, dtype, self.rows, self.start)
        return {name: (values[name], units[name]) for name in names}

    @cached_property
    def layout(self) -> tuple[np.dtype, dict[str, str | None]]:
        """Type of a row, and the units of the columns that hold one number as it is."""
        cards = (self.content[at : at + _CARD] for at in range(0, self.start, _CARD))
        return _table_layout(b"".join(card for card in cards if card.startswith(_COLUMN_CARDS)))


@lru_cache(maxsize=64)
def _table_layout(cards):
    """Of the cards of a header that describe the columns: they are the same in many files."""
    header = fits.Header.fromstring(cards)
    n = header["TFIELDS"]
    names = [str(header.get(f"TTYPE{k}", f"COLUMN {k}")).strip() for k in range(1, n + 1)]
    formats = [fits.Column(name=f"COLUMN_{k}", format=header[f"TFORM{k}"]) for k in range(1, n + 1)]
    dtype = fits.ColDefs(formats).dtype
    fields = [(name, dtype[k].newbyteorder(">")) for k, name in enumerate(names)]
    plain = {
        name: header.get(f"TUNIT{k}")
        for k, (name, kind) in enumerate(fields, 1)
        if kind.shape == () and kind.kind in "fi" and not any(f"{key}{k}" in header for key in _CHANGES)
    }
    if len(set(names)) < n:
        return dtype, {}
    return np.dtype(fields), plain


def read_tables(path: Path, names: set[str]) -> dict[str, FitsTable]:
    """Tables of a file, by the names of their HDUs in capitals: the file is opened, and unpacked, once.

    What their headers claim is checked before it is read; what stands behind the last of them is not looked at.

    Parameters
    ----------
    path : `~pathlib.Path`
    names : set of str
        One that is not there is an error, and of those of one name the first is taken.

    Raises
    ------
    InputError
        As of `check_hdu_sizes`, and for an HDU that is missing or no table.
    """
    return _walk(Path(path), _MAX_BYTES, names)


def _walk(path, max_bytes, names):
    """Go through the headers of a file, and take the tables of these names; without names all HDUs are checked."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    length = path.stat().st_size
    tables: dict[str, FitsTable] = {}
    with reading(f"{path} is no FITS file or is damaged"):
        # header by header: `fits.open` would make objects of what they claim
        with warnings.catch_warnings(), open(path, "rb") as stored:
            warnings.simplefilter("ignore", AstropyWarning)
            opener = _COMPRESSED.get(stored.peek(2)[:2])
            file = stored if opener is None else opener(stored)
            length *= 1 if opener is None else _COMPRESSION
            position = 0
            while file.seek(position) == position and file.peek(1) if opener else position < length:
                file.seek(position)
                head = _read_header(file)
                header = _read_keywords(head)
                name = str(header.get("EXTNAME", "" if position else "PRIMARY")).strip().upper()
                size = _data_size(path, name, header)
                if size > min(max_bytes, length):
                    raise InputError(
                        f"{path}: the header of HDU {name!r} claims {size} bytes of data, but the file can hold "
                        f"{min(max_bytes, length)}; it is truncated or damaged"
                    )
                if names is None:
                    _check_kind(path, name, header)
                padded = -(-size // _BLOCK) * _BLOCK
                if names is not None and name in names - tables.keys():
                    tables[name] = _table(path, name, header, head, file.read(padded), size)
                    if len(tables) == len(names):
                        return tables
                position += len(head) + padded
    if names is not None and (left := names - tables.keys()):
        raise InputError(f"{path} has no HDU {' and '.join(sorted(left))}; it is cut off, or its index table is wrong")
    return tables


class _Keywords(Mapping[str, Any]):
    """Values of the cards of a header by their keywords; each is parsed when it is asked for.

    The cards of many headers are the same: most of them are parsed once, where astropy does it for each header, and
    looks its configuration up for each value.
    """

    def __init__(self, cards: dict[str, bytes]):
        self._cards = cards

    def __getitem__(self, keyword: str) -> Any:
        return _card_value(self._cards[keyword.upper()])

    def __iter__(self) -> Iterator[str]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)


@lru_cache(maxsize=4096)
def _card_value(card):
    return fits.Header.fromstring(card)[0]


def _read_keywords(head: bytes) -> Mapping[str, Any]:
    """The keywords of a header; astropy's own where some card is not of the plain kind."""
    cards: dict[str, bytes] = {}
    if not head.isascii():  # as astropy does where it reads a file
        head = head.decode("ascii", "replace").replace("\ufffd", "?").encode()
    for at in range(0, len(head), _CARD):
        card = head[at : at + _CARD]
        keyword = card[:8].rstrip()
        if card[8:10] == b"= ":
            cards.setdefault(keyword.decode().upper(), card)
        elif keyword == b"END" and not card[8:].strip():
            break
        elif keyword not in _COMMENTS:
            return fits.Header.fromstring(head)
    return _Keywords(cards)


def _read_header(file):
    """The blocks of a header, up to the one with its end, as they are in the file."""
    blocks: list[bytes] = []
    while not blocks or not _ends(blocks[-1]):
        blocks.append(file.read(_BLOCK))
        if len(blocks[-1]) < _BLOCK:
            raise OSError("a header does not end")
    return b"".join(blocks)


def _ends(block):
    at = block.rfind(b"END ")
    return at >= 0 and at % _CARD == 0 and not block[at + 3 :].strip()


def _table(path, name, header, head, data, size):
    if header.get("ZIMAGE") or str(header.get("XTENSION", "")).strip() != "BINTABLE":
        raise InputError(f"{path}: HDU {name!r} is no table; the index table is wrong")
    if len(data) < size:
        raise InputError(f"{path}: HDU {name!r} ends after {len(data)} of {size} bytes; the file is cut off")
    table = FitsTable(header, head + data, len(head), header["NAXIS2"])
    _check_rows(path, name, table.layout[0].itemsize, header)
    return table


def _data_size(path, name, header):
    """Bytes of the data of an HDU, without padding."""
    naxis, bits = header.get("NAXIS", 0), header.get("BITPIX", 8)
    # not more than the standard allows, before anything is made of so many
    for key, number in (("NAXIS", naxis), ("TFIELDS", header.get("TFIELDS", 0))):
        if not isinstance(number, int) or not 0 <= number <= _MAX_AXES:
            raise InputError(f"{path}: the header of HDU {name!r} claims {key} = {number!r}; the file is damaged")
    more, groups = header.get("PCOUNT", 0), header.get("GCOUNT", 1)
    axes = [header.get(f"NAXIS{k}") for k in range(1, naxis + 1)]
    if bits not in _BITS or any(not isinstance(n, int) or n < 0 for n in (more, groups, *axes)):
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
        _check_rows(path, name, fits.ColDefs(columns).dtype.itemsize, header)


def _check_rows(path, name, row, header):
    if row != header["NAXIS1"]:
        raise InputError(
            f"{path}: the columns of HDU {name!r} claim rows of {row} bytes, but a row has "
            f"{header['NAXIS1']}; the file is damaged"
        )
