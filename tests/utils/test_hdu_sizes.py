"""Headers that claim what is not there are refused before anything is allocated."""

import gzip
import tracemalloc

import numpy as np
import pytest
from astropy.io import fits

from gammapy_accmaker import AcceptanceModel
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.hdu_sizes import check_hdu_sizes, read_tables


def write(path, rows=10):
    table = fits.BinTableHDU.from_columns([fits.Column("A", "D", array=np.zeros(rows))], name="EVENTS")
    image = fits.ImageHDU(np.zeros((4, 5)), name="ARRAY_1")
    fits.HDUList([fits.PrimaryHDU(), table, image]).writeto(path, overwrite=True)
    return path


def card(path, hdu, key, value):
    """Overwrite a header card of the n-th extension on disk."""
    content, at = path.read_bytes(), 0
    for _ in range(hdu):
        at = content.index(b"XTENSION", at + 1)
    at = content.index(f"{key:8s}=".encode(), at)
    path.write_bytes(content[:at] + f"{key:8s}= {value:>20}".ljust(80).encode() + content[at + 80 :])


def test_good_files_pass(tmp_path):
    path = write(tmp_path / "a.fits")
    check_hdu_sizes(path)
    packed = tmp_path / "a.fits.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    check_hdu_sizes(packed)


HOSTILE = [
    (1, "NAXIS2", 10**9),
    (1, "NAXIS2", 10**12),
    (1, "NAXIS1", 10**15),
    (1, "PCOUNT", 10**12),
    (1, "NAXIS2", -1),
    (1, "PCOUNT", -5000),
    (1, "NAXIS2", "'10'"),
    (1, "NAXIS2", 1.5),
    (1, "NAXIS", 999),
    (1, "NAXIS", -1),
    (1, "NAXIS", 10**13),
    (1, "TFIELDS", 999),
    (1, "TFIELDS", 10**13),
    (2, "NAXIS", 10**13),
    (1, "TFORM1", "'999999999999D'"),
    (1, "TFORM1", "'Z'"),
    (2, "NAXIS1", 10**12),
    (2, "BITPIX", 7),
    (2, "BITPIX", "'x'"),
    (2, "NAXIS2", -4),
]


@pytest.mark.parametrize("damage", HOSTILE, ids=str)
def test_hostile_headers(tmp_path, damage):
    path = write(tmp_path / "a.fits")
    card(path, *damage)
    tracemalloc.start()
    try:
        for read in (check_hdu_sizes, AcceptanceModel.read, lambda path: read_tables(path, {"EVENTS", "ARRAY_1"})):
            with pytest.raises(InputError, match="a.fits"):
                read(path)
            assert tracemalloc.get_traced_memory()[1] < 1e7
    finally:
        tracemalloc.stop()


def test_more_than_is_allowed(tmp_path):
    path = write(tmp_path / "a.fits", rows=1000)
    check_hdu_sizes(path, 8000)
    with pytest.raises(InputError, match="claims 8000 bytes"):
        check_hdu_sizes(path, 7999)


def test_a_compressed_image_that_claims_to_be_huge(tmp_path):
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(np.zeros((10, 10)), name="ARRAY_1")]).writeto(path)
    card(path, 1, "ZNAXIS1", 10**9)
    with pytest.raises(InputError, match="compressed image"):
        check_hdu_sizes(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_tables_that_are_wanted(tmp_path, pack):
    path = write(tmp_path / "a.fits")
    values = np.arange(10.0)
    fits.setval(path, "WHO", value="it's me", ext=1)
    with fits.open(path, mode="update") as hdulist:
        hdulist[1].data["A"] = values
    card(path, 2, "NAXIS1", 10**9)
    path.write_bytes(pack(path.read_bytes()))
    table = read_tables(path, {"EVENTS"})["EVENTS"].to_hdu()  # what stands behind it is not looked at
    np.testing.assert_array_equal(table.data["A"], values)
    assert table.header["WHO"] == "it's me"
    with pytest.raises(InputError, match="claims"):
        read_tables(path, {"EVENTS", "ARRAY_1"})
    with pytest.raises(InputError, match="claims"):
        read_tables(path, {"EVENTS", "GTI"})
    with pytest.raises(InputError, match="no file"):
        read_tables(tmp_path / "b.fits", {"EVENTS"})


def test_tables_that_are_not_there(tmp_path):
    path = write(tmp_path / "a.fits")
    with pytest.raises(InputError, match="no HDU GTI"):
        read_tables(path, {"EVENTS", "GTI"})
    with pytest.raises(InputError, match="'ARRAY_1' is no table"):
        read_tables(path, {"ARRAY_1"})
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"XTENSION") + 2880 + 40])
    with pytest.raises(InputError, match="40 of 80 bytes"):
        read_tables(path, {"EVENTS"})
    path.write_bytes(content[: content.index(b"XTENSION") + 800])
    with pytest.raises(InputError, match="does not end"):
        read_tables(path, {"EVENTS"})


ODD_CARDS = {
    "plain": [],
    "twice": ["WHO     = 'one'", "WHO     = 'two'"],
    "without a value": ["NOTHING ="],
    "small letters": ["small   = 'a ''quoted'' / text  ' / b", "Ra_Pnt  = 1.5D2"],
    "text that is a comment": ["COMMENT = 3", "HISTORY   = 4", ""],
    "other kinds": ["YES     =                    T", "PAIR    = (1.0, -2.0)", "TEXT    = '12.5'", "MINUS   = -0"],
    "a sign too early": ["WHO= 'me'"],
    "long names": ["HIERARCH a long name = 4.5"],
    "long text": ["LONG    = 'begins &'", "CONTINUE  'and goes on'"],
    "no card at all": ["what is this"],
    "two ends": ["END     = 5", "AFTER   = 6"],
    "not in English": ["WHO     = 'Müller'"],
}


def value_of(header, name):
    try:
        return header.get(name)
    except fits.VerifyError as error:
        return str(error)


@pytest.mark.parametrize("cards", ODD_CARDS.values(), ids=ODD_CARDS)
@pytest.mark.filterwarnings("ignore")
def test_keywords_are_those_that_astropy_reads(tmp_path, cards):
    path = write(tmp_path / "a.fits")
    content = path.read_bytes()
    end = content.index(b"END" + 77 * b" ", content.index(b"XTENSION"))  # there is room behind it
    more = "".join(card.ljust(80) for card in [*cards, "END"]).encode("latin-1")
    path.write_bytes(content[:end] + more + content[end + len(more) :])
    found, header = read_tables(path, {"EVENTS"})["EVENTS"].header, fits.getheader(path, "EVENTS")
    names = {*header, "TTYPE1", "who", "NAXIS", "A LONG NAME"} - {"COMMENT", "HISTORY", ""}
    assert {name: value_of(found, name) for name in names} == {name: value_of(header, name) for name in names}
    assert "MISSING" not in found and found.get("MISSING", 3) == 3
    with pytest.raises(KeyError):
        found["MISSING"]
