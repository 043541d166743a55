"""Values on their way to another process."""

import os
import pickle

import numpy as np
import pytest

from gammapy_accmaker.utils import parcels
from gammapy_accmaker.utils.parcels import Parcel, is_known_elsewhere

LARGE = np.arange(1e4).reshape(100, 100)


@pytest.fixture
def value():
    few = np.arange(3)
    whole = {"of Fortran": np.asfortranarray(LARGE), "rows": LARGE[::2]}
    return whole | {"few": few, "twice": [LARGE, LARGE], "text": "x"}


def same(one, other):
    assert one.keys() == other.keys() and one["text"] == other["text"]
    for key in ("of Fortran", "rows", "few"):
        np.testing.assert_array_equal(one[key], other[key])
    assert other["twice"][0] is other["twice"][1]


def test_a_value_comes_out_as_it_went_in_and_its_file_is_gone(value, tmp_path):
    parcel = pickle.loads(pickle.dumps(Parcel.of(value, str(tmp_path))))
    # each large array once, but for a part of one, which goes along
    assert parcel.sizes == (LARGE.nbytes,) * 2 and len(parcel.content) < LARGE[::2].nbytes + 2000
    assert len(os.listdir(tmp_path)) == 1
    same(value, parcel.open())
    other = parcel.take()
    same(value, other)
    assert not os.listdir(tmp_path)
    other["rows"] += 1  # it is its own
    np.testing.assert_array_equal(value["rows"], LARGE[::2])
    assert other["of Fortran"].flags.f_contiguous and other["rows"].flags.aligned


def test_small_values_need_no_file(tmp_path):
    parcel = Parcel.of((abs, np.arange(10)), str(tmp_path))
    assert parcel.path is None and not os.listdir(tmp_path)
    np.testing.assert_array_equal(parcel.open()[1], np.arange(10))


def test_without_room_for_a_file_all_goes_along(value, tmp_path, monkeypatch):
    same(value, Parcel.of(value, str(tmp_path / "none")).open())

    class Full:
        """A file on a full disk."""

        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, memory):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(parcels, "open", Full, raising=False)
    parcel = Parcel.of(value, str(tmp_path))
    monkeypatch.undo()
    assert parcel.path is None and not os.listdir(tmp_path)
    same(value, parcel.open())


def test_what_another_process_cannot_make(tmp_path):
    class Here:
        __module__ = "__main__"

    assert is_known_elsewhere((LARGE, open))
    for unknown in (lambda: 0, Here):
        assert not is_known_elsewhere(unknown)
        with pytest.raises(Exception, match="pickle|__main__|local"):
            Parcel.of((LARGE, unknown), str(tmp_path))
    assert not os.listdir(tmp_path)
