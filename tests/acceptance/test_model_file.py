"""The model file: exact, whole or not at all, and data only."""

import subprocess
import sys

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from simulated_runs import EDGES as SPLINE_EDGES
from simulated_runs import LAT, LON, SOLID_ANGLE, simulate_runs
from stores import EDGES, fitted, options

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, AcceptanceModel
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models import AzimuthBinned, ModelPerRun, SplineRate, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.models.base import MODEL_KINDS
from gammapy_accmaker.models.parametric.fit import fit_parametric
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.products.irf import make_mean_irf
from gammapy_accmaker.utils import model_file as io
from gammapy_accmaker.utils.files import write_atomically
from gammapy_accmaker.utils.model_file import read_model_file, write_model_file
from gammapy_accmaker.utils.run_key import RunKey

KINDS = ["radial", "grid"]
RUNS = {
    "OBS_ID": [3, 7], "ROLE": ["fit", "apply"], "USED": [True, False], "ONTIME": [1680.123456789, np.nan],
    "NORM": [1 / 3, np.nan], "FLAG": ["", "observation 7: it has no good time intervals, \u00b1 dust"],
}  # fmt: skip


def model_of(kind):
    table = Table(RUNS, units={"ONTIME": "s"})
    return AcceptanceModel(fitted(kind), AcceptanceConfig.coerce(options(kind, offset_max="2.5 deg")), table)


@pytest.fixture
def path(tmp_path):
    model_of("grid").write(tmp_path / "model.fits")
    return tmp_path / "model.fits"


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_restored_exactly(kind, tmp_path):
    before = model_of(kind)
    before.write(tmp_path / "model.fits")
    after = AcceptanceModel.read(str(tmp_path / "model.fits"))
    here, there = before.rate_model.to_arrays(), after.rate_model.to_arrays()
    assert here.keys() == there.keys()
    for name, values in here.items():
        assert values.dtype == there[name].dtype and values.shape == there[name].shape
        assert values.tobytes() == there[name].tobytes(), name
    assert after.config == before.config
    assert after.run_table.colnames == before.run_table.colnames
    for name in RUNS:
        assert np.array_equal(after.run_table[name], before.run_table[name], equal_nan=name in ("ONTIME", "NORM")), name
        assert after.run_table[name].dtype.kind == before.run_table[name].dtype.kind
    assert after.run_table["ONTIME"].unit == "s" and not after.run_table.has_masked_columns
    lon, lat = np.linspace(-2.5, 2.5, 30), np.linspace(1, -1, 30)
    assert np.array_equal(
        after.rate_model.integral_grid(EDGES, lon, lat), before.rate_model.integral_grid(EDGES, lon, lat)
    )
    assert str(after) == str(before)
    # and again
    after.write(tmp_path / "again.fits")
    assert AcceptanceModel.read(tmp_path / "again.fits").rate_model.profile.tobytes() == there["profile"].tobytes()


def one_of_each_kind():
    binned = fitted("grid")
    by_zenith = ZenithInterpolated([0.6, 0.9], [binned, fitted("grid", seed=2)], True)
    yield from (binned, by_zenith, ZenithBinned([0.5, 0.7, 1], [binned, binned]))
    yield AzimuthBinned([0, 180], [by_zenith, binned], [0, 1], [1.0, 2.0])
    yield ModelPerRun([by_zenith, binned], [RunKey(7), RunKey(8)], [0, 1])
    yield fit_parametric(binned.counts, binned.exposure, binned.bin_edges, binned.fov, "gaussian")
    yield AcceptanceModel.from_irf(make_mean_irf(binned, None, "altaz")).rate_model
    yield SplineRate(
        fit_spline(simulate_runs(3, 1), SPLINE_EDGES, LON, LAT, SOLID_ANGLE, run_effects="norm", max_rounds=4)[0]
    )


READ_FIRST = """
import sys
from gammapy_accmaker.acceptance.model import AcceptanceModel
print(*(AcceptanceModel.read(path).rate_model.kind for path in sys.argv[1:]), sep=",")
"""


def test_a_file_of_any_kind_is_read_whatever_was_imported_before(tmp_path):
    """Reading is the first thing that a fresh interpreter does."""
    paths, table = [], Table(RUNS)
    for model in one_of_each_kind():
        paths.append(str(tmp_path / f"{len(paths)}.fits"))
        AcceptanceModel(model, AcceptanceConfig(), table).write(paths[-1])
    done = subprocess.run([sys.executable, "-c", READ_FIRST, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = {kind for kind, cls in MODEL_KINDS.items() if cls.__module__.startswith("gammapy_accmaker")}
    assert set(done.stdout.strip().split(",")) == ours and len(paths) == len(ours)


def test_a_maker_takes_the_configuration_of_the_file(path):
    maker = AcceptanceBackgroundMaker(model=AcceptanceModel.read(path))
    assert maker.config == model_of("grid").config
    assert maker.config.model.type == "grid" and maker.config.run_effects.type == "norm"


def test_it_is_valid_fits(path):
    with fits.open(path) as hdulist:
        hdulist.verify("exception")
        assert hdulist[0].header["FORMAT"] == "gammapy_accmaker model"


def test_an_existing_file_is_kept(path):
    before = path.read_bytes()
    with pytest.raises(InputError, match="overwrite=True"):
        model_of("radial").write(path)
    assert path.read_bytes() == before
    model_of("radial").write(path, overwrite=True)
    assert AcceptanceModel.read(path).rate_model.is_radial
    assert [p.name for p in path.parent.iterdir()] == ["model.fits"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_is_written_half(overwrite, path, monkeypatch):
    before = path.read_bytes()
    target = path if overwrite else path.with_name("other.fits")

    def fail(self, name, *args, **kwargs):
        name.write_bytes(b"SIMPLE  =")
        raise OSError("the disk is full")

    monkeypatch.setattr(io.fits.HDUList, "writeto", fail)
    with pytest.raises(OSError, match="disk is full"):
        model_of("radial").write(target, overwrite=overwrite)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.fits"]


def test_files_are_moved_into_place(tmp_path):
    target, seen = tmp_path / "a.txt", []

    def write(temporary):
        seen.append(temporary)
        assert not target.exists()
        temporary.write_text("whole")

    write_atomically(target, write, overwrite=False)
    assert target.read_text() == "whole" and seen[0] != target and seen[0].parent == tmp_path
    assert list(tmp_path.iterdir()) == [target]


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="no file"):
        AcceptanceModel.read(tmp_path / "nothing.fits")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"SIMPLE  =                    T" + b" " * 5000, bytes(range(256)) * 40]
)
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_foreign_bytes(content, tmp_path):
    (tmp_path / "x.fits").write_bytes(content)
    with pytest.raises(InputError, match="model file"):
        AcceptanceModel.read(tmp_path / "x.fits")


def test_foreign_fits_file(tmp_path):
    Table({"a": [1, 2]}).write(tmp_path / "x.fits")
    with pytest.raises(InputError, match="not written by AcceptanceModel.write"):
        AcceptanceModel.read(tmp_path / "x.fits")


FOREIGN = {
    "an unknown version": (lambda hdulist: hdulist[0].header.set("VERSION", 99), "version"),
    "no OBS_ID": (lambda hdulist: hdulist["RUNS"].columns.change_name("OBS_ID", "OTHER"), "OBS_ID"),
    "no USED": (lambda hdulist: hdulist["RUNS"].columns.change_name("USED", "OTHER"), "USED"),
} | {
    f"{key} for a name": (lambda hdulist, key=key: hdulist["ARRAY_1"].header.set("KEY", key), "model file")
    for key in (7, 1.5, True)
}


@pytest.mark.parametrize("change", FOREIGN)
def test_what_every_reader_needs_is_missed(change, path):
    edit, told = FOREIGN[change]
    with fits.open(path, mode="update") as hdulist:
        edit(hdulist)
    with pytest.raises(InputError, match=told):
        AcceptanceModel.read(path)


@pytest.mark.parametrize("part", np.linspace(0.02, 0.995, 12))
@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_truncated_file(part, path):
    content = path.read_bytes()
    # the last block of 2880 bytes may be padding
    path.write_bytes(content[: int(part * (len(content) - 2880))])
    with pytest.raises(InputError, match="model file"):
        AcceptanceModel.read(path)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_damaged_bytes_never_give_another_error(path):
    """Flipped bytes are an InputError or change values, but no foreign exception comes out and no memory is eaten."""
    content, rng = path.read_bytes(), np.random.default_rng(0)
    headers = [
        k
        for k in range(0, len(content), 80)
        if content[k : k + 6] in (b"NAXIS1", b"BITPIX", b"SHAPE ", b"KEY   ", b"TFORM1")
    ]
    for k in [*(h + 29 for h in headers), *(h + 12 for h in headers), *rng.integers(0, len(content), 40)]:
        path.write_bytes(content[:k] + bytes([rng.integers(32, 127)]) + content[k + 1 :])
        try:
            AcceptanceModel.read(path)
        except InputError as error:
            assert "model file" in str(error) or "edges" in str(error)


@pytest.mark.parametrize("missing", ["TEXTS", "RUNS", "ARRAY_1", "ARRAY_5"])
def test_a_missing_part_is_named(missing, path):
    with fits.open(path) as hdulist:
        left = fits.HDUList([hdu.copy() for hdu in hdulist if hdu.name != missing])
        left.writeto(path, overwrite=True)
    with pytest.raises(InputError, match="model file"):
        AcceptanceModel.read(path)


def test_unknown_kind(path):
    arrays, texts, runs = read_model_file(path)
    write_model_file(path, arrays, texts | {"kind": "crystal ball"}, runs, overwrite=True)
    with pytest.raises(InputError, match="crystal ball"):
        AcceptanceModel.read(path)


def test_a_shape_that_does_not_fit(path):
    with fits.open(path, mode="update") as hdulist:
        hdulist["ARRAY_3"].header["SHAPE"] = "3,4,5"
    with pytest.raises(InputError, match="model file"):
        AcceptanceModel.read(path)
    with fits.open(path, mode="update") as hdulist:
        hdulist["ARRAY_3"].header["SHAPE"] = "100000,100000,100"
    with pytest.raises(InputError, match="damaged"):
        AcceptanceModel.read(path)


def test_arrays_of_other_types_are_refused(tmp_path):
    with pytest.raises(InputError, match="numbers"):
        write_model_file(tmp_path / "x.fits", {"a": np.array([1 + 1j])}, {}, Table({"OBS_ID": [1]}), overwrite=False)


def test_scalars_empty_arrays_and_kinds_of_numbers(tmp_path):
    arrays = {
        "scalar": np.array(1 / 3), "empty": np.zeros((0,)), "integers": np.arange(6).reshape(2, 3),
        "small": np.float32([1 / 3]),
        "nan": np.array([np.nan, np.inf, -0.0]), "truth": np.array([[True], [False]]), "word": np.array("bspline "),
        "words": np.array(["a b", "", "\u03b8 "]), "no words": np.zeros(0, "U1"),
        "a long name, with LOWER case": np.ones((2, 1, 3)),
    }  # fmt: skip
    write_model_file(
        tmp_path / "x.fits", arrays, {"text": "a\nb\n  c: 'd'\n", "none": ""}, Table({"OBS_ID": [1]}), overwrite=False
    )
    again, texts, _ = read_model_file(tmp_path / "x.fits")
    for name, values in arrays.items():
        assert again[name].shape == values.shape and (again[name].dtype == values.dtype or values.dtype.kind == "U"), (
            name
        )
        assert np.array_equal(again[name], values, equal_nan=values.dtype.kind == "f"), name
    assert np.signbit(again["nan"][2])
    with pytest.raises(InputError, match="line break"):
        write_model_file(
            tmp_path / "y.fits", {"words": np.array(["a\nb"])}, {}, Table({"OBS_ID": [1]}), overwrite=False
        )
    assert texts == {"text": "a\nb\n  c: 'd'\n", "none": ""}


def test_peek_draws(path):
    import matplotlib.pyplot as plt

    for kind in KINDS:
        figure = model_of(kind).peek()
        assert len(figure.axes) >= 4
        plt.close(figure)


def test_rate_takes_quantities():
    import astropy.units as u

    model = model_of("grid")
    rate = model.rate([300, 3000] * u.GeV, 60 * u.arcmin, 0 * u.deg)
    assert rate.unit == "s-1 MeV-1 sr-1" and rate.shape == (2,)
    assert np.allclose(rate.value, model.rate_model.rate(np.array([0.3, 3.0]), 1.0, 0.0))


def test_the_configuration_of_a_model_is_one(tmp_path):
    model = model_of("grid")
    assert isinstance(model.config, AcceptanceConfig) and str(model.config) == model.config.to_yaml()
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert again.config == model.config and hash(again.config) == hash(model.config)
    assert again.config != model.config.update({"offset_max": "1 deg"})
    # scripts of earlier versions take it, and give it, as text
    assert AcceptanceConfig.from_yaml(model.config) is model.config
    assert AcceptanceModel(model.rate_model, str(model.config), model.run_table).config == model.config
