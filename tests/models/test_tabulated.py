"""Background IRFs of anyone's as models: read as gammapy reads them, applied by the maker, written and read back."""

import astropy.units as u
import numpy as np
import pytest
from background_irfs import ENERGY, irf_2d, irf_3d
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.irf import Background3D, FoVAlignment
from gammapy.makers.utils import make_map_background_irf
from helpers import make_observation, tracking
from scipy.integrate import quad
from stores import observations, plain_store, sky_geom

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.tabulated import TabulatedModel


def by_gammapy(irf, observation, geom, oversampling=2):
    return make_map_background_irf(
        observation.pointing, observation.observation_time_duration, irf, geom, observation.tstart,
        oversampling=oversampling, location=observation.observatory_earth_location,
    ).data  # fmt: skip


@pytest.fixture(scope="module")
def observation():
    return make_observation(tracking(130, 65), [(0, 600)])


@pytest.mark.parametrize("alignment", ["ALTAZ", "RADEC", "REVERSE_LON_RADEC"])
def test_the_maker_predicts_what_gammapy_reads(alignment, observation):
    irf = irf_3d(alignment=alignment)
    maker = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf(irf))
    geom = sky_geom(observation.pointing.fixed_icrs, edges=np.geomspace(0.1, 100, 11), width=3.6, binsz=0.1)
    ours, theirs = maker.make_background(geom, observation).data, by_gammapy(irf, observation, geom)
    assert np.allclose(ours, theirs, rtol=6e-3)
    assert np.allclose(ours.sum((1, 2)), theirs.sum((1, 2)), rtol=3e-3)
    # the sides differ: a flipped longitude would not do
    assert not np.allclose(ours, ours[:, :, ::-1], rtol=0.1)


def test_radial_irf(observation):
    irf = irf_2d()
    maker = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf(irf))
    geom = sky_geom(observation.pointing.fixed_icrs, edges=np.geomspace(0.1, 100, 11), width=3.6, binsz=0.1)
    ours, theirs = maker.make_background(geom, observation).data, by_gammapy(irf, observation, geom)
    assert np.allclose(ours.sum((1, 2)), theirs.sum((1, 2)), rtol=3e-3)


def test_units_and_input_are_respected():
    irf = irf_3d()
    other = irf_3d(data=irf.quantity.to_value("s-1 TeV-1 deg-2"), unit="s-1 TeV-1 deg-2")
    at = (1.3 * u.TeV, 0.4 * u.deg, -0.7 * u.deg)
    model = AcceptanceModel.from_irf(irf)
    assert u.isclose(model.rate(*at), AcceptanceModel.from_irf(other).rate(*at))
    want = irf.evaluate(energy=[1.3] * u.TeV, fov_lon=[0.4] * u.deg, fov_lat=[-0.7] * u.deg)[0]
    assert u.isclose(model.rate(*at), want, rtol=1e-6)
    assert np.array_equal(irf.data, irf_3d().data)


def test_norm_of_each_run():
    """An IRF twice too high: the norms of the runs come out at a half."""
    store = plain_store()
    runs = observations(store)[-2:]
    axes = irf_3d().axes
    e, lon, lat = np.meshgrid(*(a.center.value for a in axes), indexing="ij")
    truth = Background3D(
        axes=axes, data=2 * store.truth.rate(e, lon, lat), unit="s-1 MeV-1 sr-1", fov_alignment="ALTAZ"
    )
    maker = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf(truth, run_effects="norm"))
    for run in runs:
        adapted = maker.adapt(run)
        assert abs(adapted.norm - 0.5) < 5 * adapted.norm_error + 0.01
        geom = sky_geom(run.pointing.fixed_icrs, edges=(1, 10), width=3)
        counts = MapDataset.create(geom).counts
        counts.fill_events(run.events)
        predicted = maker.make_background(geom, run).data.sum()
        assert abs(predicted - counts.data.sum()) < 5 * np.sqrt(predicted)


@pytest.mark.parametrize("many", [False, True])
def test_write_and_read(many, tmp_path):
    model = AcceptanceModel.from_irf({20: irf_3d(), 50 * u.deg: irf_3d(2.0)} if many else irf_3d())
    model.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits")
    assert again.config == model.config and str(again) == str(model)
    at = ([0.2, 3, 40] * u.TeV, 0.5 * u.deg, 1 * u.deg, 0.8)
    assert np.array_equal(again.rate(*at), model.rate(*at)) and np.all(model.rate(*at) > 0)


def test_dictionary_by_zenith_is_linear_in_cos_zenith_and_clamped():
    model = AcceptanceModel.from_irf({0: irf_2d(), 60: irf_2d(3.0)})
    at = (1 * u.TeV, 0.5 * u.deg, 0 * u.deg)
    rates = u.Quantity([model.rate(*at, cos_zenith=z) for z in (1, 0.75, 0.5, 0.3)])
    assert np.allclose((rates / rates[0]).value, [1, 2, 3, 3])


def test_the_maker_takes_the_zenith_angle_of_the_run(observation):
    by_zenith = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf({0: irf_2d(), 60: irf_2d(3.0)}))
    alone = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf(irf_2d()))
    geom = sky_geom(observation.pointing.fixed_icrs, width=3, binsz=0.1)
    ratio = (
        by_zenith.make_background(geom, observation).data.sum() / alone.make_background(geom, observation).data.sum()
    )
    cos_zenith = np.mean(np.sin(observation.get_pointing_altaz(observation.tmid).alt.rad))
    assert ratio == pytest.approx(1 + 2 * (1 - cos_zenith) / 0.5, rel=0.01)


@pytest.mark.gammapy_data
def test_dr1_the_shipped_background():
    """This work made use of data from the H.E.S.S. DL3 DR1, H.E.S.S. collaboration, 2018."""
    run = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").obs(33787)
    irf = run.bkg
    geom = sky_geom(run.pointing.fixed_icrs, edges=np.geomspace(0.6, 10, 7), width=4, binsz=0.1)
    theirs = by_gammapy(irf, run, geom, oversampling=20)
    ours = AcceptanceBackgroundMaker(model=AcceptanceModel.from_irf(irf)).make_background(geom, run).data
    assert irf.fov_alignment == FoVAlignment.REVERSE_LON_RADEC
    assert np.allclose(ours.sum((1, 2)), theirs.sum((1, 2)), rtol=0.02)
    residual, mirrored = (np.std((x - theirs).sum(0)) for x in (ours, ours[:, :, ::-1]))
    assert residual < 0.3 * mirrored


def test_integrals_are_those_of_the_interpolation():
    table = TabulatedModel(ENERGY.edges.to_value("TeV"), FovBins((np.array([0, 1, 2.0, 3.0]),)), _ragged())
    edges = np.array([0.05, 0.13, 0.9, 4, 77, 200])
    got = table.integral_grid(edges, np.array([0.7, 1.9]), np.zeros(2))
    for k in range(2):
        for i in range(len(edges) - 1):
            low, high = np.clip(edges[[i, i + 1]], 0.1, 100)
            nodes = [e for e in ENERGY.center.to_value("TeV") if low < e < high]
            want = quad(
                lambda e, k=k: table.rate_grid(np.array([e]), np.array([0.7, 1.9]), np.zeros(2))[0, k],
                low, high, points=nodes, limit=500,
            )[0]  # fmt: skip
            assert got[i, k] == pytest.approx(want * 1e6, rel=1e-5)


def _ragged():
    values = ENERGY.center.to_value("TeV")[:, None] ** -2.5 * np.array([1.0, 0.6, 0.2])
    values[7, 1] = values[-2] = 0
    return values


def test_trap_empty_bins_and_nan_stay_between_their_neighbours(caplog):
    """The logarithm of an empty bin gave rates of 1e46 elsewhere."""
    full, data = irf_3d(), irf_3d().data.copy()
    data[-2], data[5, 10, 10], data[6, 3, 3] = 0, np.nan, -1
    model = AcceptanceModel.from_irf(irf_3d(data=data))
    assert "2 of its" in caplog.text
    x = np.linspace(-2.99, 2.99, 61)
    lon, lat = (a.ravel() for a in np.meshgrid(x, x))
    energy = np.geomspace(0.1001, 99.9, 200)
    got = model.rate_model.rate_grid(energy, lon, lat)
    want = AcceptanceModel.from_irf(full).rate_model.rate_grid(energy, lon, lat)
    assert np.all(np.isfinite(got)) and np.all(got >= 0)
    assert got.max() <= want.max() * (1 + 1e-9) and np.all(got[energy < 30] < 3 * want[energy < 30])
    assert np.all(got[energy > 50] <= want[(energy > 30) & (energy < 60)].max())
    assert np.all(model.rate_model.integral_grid(np.geomspace(0.1, 100, 7), lon, lat) > 0)


def test_a_table_ends_at_its_edges():
    """It is continued from the outer centres to the outer edges, in energy and field of view, and is 0 beyond."""
    edges = np.array([1.0, 2.0, 4.0]), (np.array([-1.0, 0.0, 1.0]), np.array([-2.0, 0.0, 2.0]))
    model = TabulatedModel(edges[0], FovBins(edges[1]), np.full((2, 2, 2), 3.0))
    at = np.array([0.9, 1.0, 1.5, 4.0, 4.1, 4.9])
    assert model.rate_grid(at, np.zeros(1), np.zeros(1))[:, 0] == pytest.approx([0, 3, 3, 3, 0, 0])
    lon, lat = np.array([-1.01, -1.0, -0.9, 0.99, 1.0, 0, 0]), np.array([0, 0, 0, 0, 0, -2.01, -2.0])
    assert model.rate_grid([2.0], lon, lat)[0] == pytest.approx([0, 3, 3, 3, 0, 0, 3])
    integral = model.integral_grid([0.5, 1.0, 3.0, 9.0], np.zeros(1), np.zeros(1))[:, 0]
    assert integral == pytest.approx([0, 6e6, 3e6])


def test_a_table_of_one_bin_is_flat():
    model = TabulatedModel(np.array([1.0, 4.0]), FovBins((np.array([0.0, 2.0]),)), np.array([[3.0]]))
    assert model.rate_grid([1.0, 2.5, 4.0], np.array([0.3]), np.array([1.0]))[:, 0] == pytest.approx([3, 3, 3])
    assert model.integral_grid([1.0, 2.0, 4.0], np.array([0.3]), np.array([1.0]))[:, 0] == pytest.approx([3e6, 6e6])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_rates_that_are_none_are_refused(bad):
    values = np.ones((2, 2))
    values[1, 0] = bad
    with pytest.raises(InputError, match="rates"):
        TabulatedModel(np.array([1.0, 2.0, 4.0]), FovBins((np.array([0.0, 1.0, 2.0]),)), values)
    with pytest.raises(InputError, match="energies > 0"):
        TabulatedModel(np.array([0.0, 2.0, 4.0]), FovBins((np.array([0.0, 1.0, 2.0]),)), np.ones((2, 2)))


def test_alignment_that_the_header_lacks_is_named(caplog):
    AcceptanceModel.from_irf(irf_3d(alignment="RADEC", meta={"HDUCLAS2": "BKG"}))
    assert "no FOVALIGN" in caplog.text and "RADEC" in caplog.text
    caplog.clear()
    model = AcceptanceModel.from_irf(irf_3d(alignment="RADEC", meta={"HDUCLAS2": "BKG"}), fov_alignment="altaz")
    assert not caplog.text and model.config.fov_alignment == "altaz"


@pytest.mark.parametrize(
    ("irf", "options", "text"),
    [
        ("irf.fits", {}, "got str"),
        (irf_3d(unit="s-1"), {}, "units cannot be used"),
        (irf_3d(data=np.zeros((20, 30, 30))), {}, "all 0"),
        ({}, {}, "empty dictionary"),
        ({100: irf_2d()}, {}, "zenith angle 100"),
        ({20: irf_2d(), 40: irf_3d()}, {}, "must be alike"),
        ({20: irf_3d(), 40: irf_3d(alignment="RADEC")}, {}, "must be alike"),
        (irf_2d(), {"fov_alignment": "galactic"}, "fov_alignment"),
        (irf_2d(), {"run_effects": "shift"}, "run_effects"),
    ],
)
def test_bad_input(irf, options, text):
    with pytest.raises(InputError, match=text):
        AcceptanceModel.from_irf(irf, **options)
