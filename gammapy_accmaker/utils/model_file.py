"""The model file: FITS image extensions that hold the arrays of a model, text and the run table. Data, never code."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.table import Table

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.files import write_atomically
from gammapy_accmaker.utils.hdu_sizes import check_hdu_sizes

_FORMAT = "gammapy_accmaker model"
_FORMAT_VERSION = 3  # raised when what is stored changes
_READ_VERSIONS = (2, 3)  # 2: without the exclusion
_TEXT, _STRING, _STRINGS = "text:", "string:", "strings:"
_LINE_END, _TEXT_END = "\n", "|"
_MAX_BYTES = 2**30  # of all arrays of a file; a header that claims more is not believed


def write_model_file(
    path: Path, arrays: dict[str, np.ndarray], texts: dict[str, str], run_table: Table, overwrite: bool
) -> None:
    """Write arrays, texts and the run table of a model to one FITS file, exactly."""
    primary = fits.PrimaryHDU()
    primary.header["FORMAT"] = _FORMAT
    primary.header["VERSION"] = _FORMAT_VERSION
    hdus = [primary]
    texts = {_TEXT + key: text for key, text in texts.items()}
    for name, values in arrays.items():
        values = np.asarray(values)
        if values.dtype.kind == "U" and values.ndim <= 1:
            if any(_LINE_END in text for text in np.atleast_1d(values)):
                raise InputError(f"model array {name!r}: got a text with a line break, but one line is needed")
            # each line is ended, so that no lines and one empty line differ
            kind = _STRING if values.ndim == 0 else _STRINGS
            texts[kind + name] = "".join(f"{text}{_LINE_END}" for text in np.atleast_1d(values))
            continue
        if values.dtype.kind not in "biuf":
            raise InputError(f"model array {name!r}: got the type {values.dtype}, but numbers or text are needed")
        is_bool, values = values.dtype.kind == "b", values.astype("u1") if values.dtype.kind == "b" else values
        # FITS has no scalar and no empty images
        hdu = fits.ImageHDU(np.atleast_1d(values) if values.size else None, name=f"ARRAY_{len(hdus)}")
        hdu.header["KEY"] = name
        hdu.header["BOOL"] = is_bool
        hdu.header["SHAPE"] = ",".join(str(n) for n in values.shape)
        hdus.append(hdu)
    # FITS drops blanks at the end of a text and knows bytes alone
    text_table = Table({"KEY": list(texts), "TEXT": [(text + _TEXT_END).encode() for text in texts.values()]})
    hdus.append(fits.BinTableHDU(text_table, name="TEXTS"))
    run_table = run_table.copy()
    for column in run_table.columns.values():
        column.info.format = column.info.description = (
            None  # FITS does not know them, and they are those of the package
        )
    run_table.convert_unicode_to_bytestring()
    hdus.append(fits.BinTableHDU(run_table, name="RUNS"))
    write_atomically(path, lambda temporary: fits.HDUList(hdus).writeto(temporary), overwrite)


def read_model_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], Table]:
    """Read what `write_model_file` wrote.

    Raises
    ------
    InputError
        For a file that is missing, is not such a file, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"model file: there is no file {path}")
    try:
        check_hdu_sizes(path, _MAX_BYTES)
        with fits.open(path, memmap=False, disable_image_compression=True) as hdulist:
            header = hdulist[0].header
            if header.get("FORMAT") != _FORMAT:
                raise InputError(f"model file: {path} was not written by AcceptanceModel.write")
            if header.get("VERSION") not in _READ_VERSIONS:
                raise InputError(
                    f"model file: {path} has version {header.get('VERSION')!r}, but {_READ_VERSIONS[0]} to "
                    f"{_FORMAT_VERSION} are read; read it with the version of gammapy_accmaker that wrote it, "
                    "or fit again"
                )
            arrays = _read_arrays(path, hdulist)
            texts = Table.read(hdulist["TEXTS"])
            # else NaN and empty text would come back masked
            run_table = Table.read(hdulist["RUNS"], mask_invalid=False)
            run_table.convert_bytestring_to_unicode()
            texts.convert_bytestring_to_unicode()
            found = {
                str(key): str(text).removesuffix(_TEXT_END)
                for key, text in zip(texts["KEY"], texts["TEXT"], strict=True)
            }
    except Exception as error:  # whatever a damaged file leads to
        if isinstance(error, InputError):
            raise InputError(f"model file: {str(error).removeprefix('model file: ')}") from error
        raise InputError(f"model file: {path} is damaged or is no FITS file ({error})") from error
    for key, text in found.items():
        lines = np.array(text.split(_LINE_END)[:-1], dtype=str)
        if key.startswith(_STRINGS):
            arrays[key.removeprefix(_STRINGS)] = lines
        elif key.startswith(_STRING) and len(lines) == 1:
            arrays[key.removeprefix(_STRING)] = lines[0]
    return arrays, {key.removeprefix(_TEXT): text for key, text in found.items() if key.startswith(_TEXT)}, run_table


def _read_arrays(path, hdulist):
    arrays, size = {}, 0
    for hdu in hdulist:
        if not hdu.name.startswith("ARRAY_"):
            continue
        shape = tuple(int(n) for n in hdu.header["SHAPE"].split(",") if n)
        size += int(np.prod(shape, dtype=object)) * abs(hdu.header["BITPIX"]) // 8
        if size > _MAX_BYTES or any(n < 0 for n in shape):
            raise InputError(f"model file: {path} claims arrays of {size} bytes; it is damaged")
        values = np.zeros(0) if hdu.data is None else hdu.data
        values = values.astype(values.dtype.newbyteorder("=")).reshape(shape)
        arrays[str(hdu.header["KEY"])] = values.astype(bool) if hdu.header["BOOL"] else values
    return arrays


def below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def numbered(arrays: dict[str, np.ndarray], mark: str) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of one part after the other, behind the numbers of which they are; each part has one of a name."""
    for k in itertools.count():
        if f"{k}/{mark}" not in arrays:
            return
        yield below(arrays, f"{k}/")
