"""The half of the camera with the source, and circles from a catalogue, as options of the exclusion."""

import logging
import re

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.table import MaskedColumn, Table
from gammapy.data import DataStore, ObservationMetaData
from gammapy.utils.metadata import TargetMetaData
from helpers import make_observation, tracking, xyz_of
from regions import CircleSkyRegion
from sources import with_source
from stores import IRFS, altered, observations, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig, fit_acceptance
from gammapy_accmaker.acceptance.reduction import Reduction, make_exclusion
from gammapy_accmaker.errors import InputError, ObservationError

KINDS = ["radial", "grid"]


def config(kind="grid", effects="norm", half=True, **more):
    return AcceptanceConfig.coerce(options(kind, effects, exclusion={"wobble_half": half}, **more))


def reduced(observation, settings):
    reduction = Reduction.of(settings)
    return reduction.reduce(observation), reduction.bins


@pytest.fixture(scope="module")
def store():
    return plain_store()


@pytest.fixture(scope="module")
def on_runs(store):
    return observations(store, store.on_obs_ids)


def test_the_half_on_the_side_of_the_source(on_runs):
    for observation in on_runs:
        half = Reduction.of(config()).run_exclusion(observation)
        pointing, source = observation.get_pointing_icrs(observation.tmid), observation.meta.target.position
        angle = pointing.position_angle(source)
        for turn, inside in ((0, True), (85, True), (-85, True), (95, False), (180, False), (-95, False)):
            positions = pointing.directional_offset_by(angle + turn * u.deg, [0.2, 1, 2] * u.deg)
            assert np.all(half.contains(xyz_of(positions)) == inside)


def test_half_of_each_ring_is_used(on_runs):
    run, _ = reduced(on_runs[0], config("radial"))
    assert np.allclose(run.exposure, 0.5 * run.ontime, rtol=0.05)
    whole, _ = reduced(on_runs[0], config("radial", half=False))
    assert run.counts.sum() == pytest.approx(0.5 * whole.counts.sum(), abs=5 * np.sqrt(0.5 * whole.counts.sum()))
    assert np.allclose(whole.exposure, run.ontime)


def test_in_the_camera_frame_of_radec_the_half_stands_still(on_runs):
    run, bins = reduced(on_runs[0], config(fov_alignment="radec", model={"type": "grid", "offset_bins": 12}))
    source = on_runs[0].meta.target.position
    assert abs(source.ra.deg - on_runs[0].get_pointing_icrs(on_runs[0].tmid).ra.deg) < 1e-6
    # the source lies south of the pointing: the half of lower declination
    south = bins.fov.fov_lat < 0
    assert np.all(run.exposure[south & (bins.fov.fov_lat < -0.2)] == 0)
    assert np.allclose(run.exposure[bins.fov.fov_lat > 0.2], run.ontime)
    assert not run.counts[:, run.exposure == 0].sum()


def test_it_turns_with_the_field(on_runs):
    """In the ALTAZ camera the half turns during the run: its exposure is a mean over time, half of all."""
    run, bins = reduced(on_runs[0], config(fov_alignment="altaz"))
    part = run.exposure / run.ontime
    volume = bins.fov.solid_angle
    assert np.sum(part * volume) / volume.sum() == pytest.approx(0.5, abs=0.01)
    assert np.sum((part > 0.05) & (part < 0.95)) > 0.1 * bins.fov.size


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_the_other_half_does_no_harm(kind, store, on_runs):
    """Without any region a strong source spoils the fit; with the half left out it is that of runs without a source."""
    source = on_runs[0].meta.target.position
    spoilt = [with_source(o, source, 3000, seed=k) for k, o in enumerate(on_runs)]
    clean = fit_acceptance(on_runs, config(kind)).rate_model
    half = fit_acceptance(spoilt, config(kind)).rate_model
    whole = fit_acceptance(spoilt, config(kind, half=False)).rate_model
    assert np.abs(half.counts.sum() / clean.counts.sum() - 1) < 0.002
    assert whole.counts.sum() > 1.05 * 2 * clean.counts.sum()
    edges, x = np.array([0.3, 1, 3, 10]), np.linspace(-2, 2, 41)
    expected = sum(store.expected_counts(o.obs_id, edges, x, x) for o in on_runs).sum((1, 2))
    center = 0.5 * (x[1:] + x[:-1])
    lon, lat = (a.ravel() for a in np.meshgrid(center, center, indexing="ij"))
    seconds = sum(o.observation_time_duration.to_value("s") for o in on_runs)
    got = half.integral_grid(edges, lon, lat).sum(1) * np.radians(0.1) ** 2 * seconds
    assert np.all(np.abs(got - expected) < 4 * np.sqrt(2 * expected))


def test_a_given_source_and_runs_that_do_not_see_it(store, on_runs):
    source = on_runs[0].meta.target.position
    given = config(
        half={"lon": f"{source.galactic.l.deg} deg", "lat": f"{source.galactic.b.deg} deg", "frame": "galactic"}
    )
    here, _ = reduced(on_runs[1], given)
    there, _ = reduced(on_runs[1], config())
    assert np.allclose(here.exposure, there.exposure, atol=1)
    (off,) = observations(store, store.off_obs_ids[:1])
    run, _ = reduced(off, given)
    assert np.allclose(run.exposure, run.ontime)
    assert AcceptanceConfig.from_yaml(given.to_yaml()).to_yaml() == given.to_yaml()


def test_a_run_without_a_target_is_named(store, on_runs, caplog):
    bare = altered(on_runs[1], meta=ObservationMetaData(deadtime_fraction=0.06))
    with pytest.raises(ObservationError, match="names no target"):
        reduced(bare, config())
    empty = make_observation(tracking(30.0, 60.0))
    empty.meta.target = TargetMetaData(name="nowhere")
    with pytest.raises(ObservationError, match="wobble_half"):
        reduced(empty, config())
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance([on_runs[0], bare], config())
    row = model.run_table[model.run_table["OBS_ID"] == bare.obs_id][0]
    assert not row["USED"] and "names no target" in row["FLAG"] and str(bare.obs_id) in caplog.text
    with pytest.raises(InputError, match="none of the 1 can be used.*names no target"):
        fit_acceptance([bare], config())


def test_a_run_that_points_at_its_source_has_no_free_half(store):
    (off,) = observations(store, store.off_obs_ids[:1])
    with pytest.raises(ObservationError, match="points at the source"):
        reduced(off, config())


@pytest.mark.parametrize(
    "bad",
    [
        "half",
        {"lon": "83 deg"},
        {"lon": "83 deg", "lat": "95 deg"},
        {"lon": "1 s", "lat": "2 deg"},
        ["83 deg", "22 deg"],
    ],
)
def test_bad_positions(bad):
    with pytest.raises(InputError, match=re.escape("exclusion.wobble_half")):
        config(half=bad)


def test_the_maker_takes_the_half_for_fit_and_run(on_runs):
    source = on_runs[0].meta.target.position
    spoilt = [with_source(o, source, 800, seed=k) for k, o in enumerate(on_runs)]
    maker = AcceptanceBackgroundMaker(config("radial")).fit(spoilt)
    clean = AcceptanceBackgroundMaker(config("radial")).fit(on_runs)
    assert maker.adapt(spoilt[0]).norm == pytest.approx(clean.adapt(on_runs[0]).norm, rel=1e-3)


STARS = Table(
    {
        "ra": [100.0, 101.0, 210.0] * u.deg,
        "dec": [-21.0, -20.0, 5.0] * u.deg,
        "mag": [1.0, 4.0, 2.0],
        "size": [6, 12, 30] * u.arcmin,
    }
)


@pytest.mark.parametrize("ending", ["ecsv", "fits", "csv"])
def test_circles_from_a_table(ending, tmp_path):
    path = tmp_path / f"stars.{ending}"
    table = STARS.copy()
    if ending == "csv":
        table["size"] = table["size"].to("deg")
        table = Table({name: np.asarray(table[name]) for name in table.colnames})
    table.write(path)
    for more, radii in (
        ({"radius": "0.3 deg"}, [0.3, 0.3, 0.3]),
        ({"radius_column": "size"}, [0.1, 0.2, 0.5]),
        ({"radius": "0.3 deg", "magnitude": "mag", "magnitude_max": 2}, [0.3, 0, 0.3]),
    ):
        settings = AcceptanceConfig.coerce(options("grid", exclusion={"catalog": {"path": str(path), **more}}))
        exclusion = make_exclusion(settings)
        for ra, dec, radius in zip(STARS["ra"], STARS["dec"], radii, strict=True):
            star = SkyCoord(ra, dec, unit="deg")
            near = star.directional_offset_by(30 * u.deg, [0.99 * radius + 1e-9, 1.01 * radius + 1e-9] * u.deg)
            assert list(exclusion.contains(xyz_of(near))) == [radius > 0, False]
        assert AcceptanceConfig.from_yaml(settings.to_yaml()).to_yaml() == settings.to_yaml()


def test_margin_and_regions_beside_a_catalogue(tmp_path):
    STARS.write(tmp_path / "stars.ecsv")
    given = {"catalog": {"path": str(tmp_path / "stars.ecsv"), "radius": "0.3 deg"}, "margin": "0.2 deg"}
    exclusion = make_exclusion(
        AcceptanceConfig.coerce(options("grid", exclusion=given)),
        CircleSkyRegion(SkyCoord(50, 0, unit="deg"), 0.1 * u.deg),
    )
    positions = SkyCoord([100.0, 100.0, 50.0, 50.0], [-20.51, -20.49, 0.29, 0.31], unit="deg")
    assert list(exclusion.contains(xyz_of(positions))) == [True, False, True, False]


def test_a_star_is_left_out_of_the_fit(store, on_runs, tmp_path):
    source = on_runs[0].meta.target.position
    Table({"RAJ2000": [source.ra.deg], "DEJ2000": [source.dec.deg]}).write(tmp_path / "stars.ecsv")
    catalog = {"path": str(tmp_path / "stars.ecsv"), "ra": "RAJ2000", "dec": "DEJ2000", "radius": "0.4 deg"}
    by_catalog = fit_acceptance(on_runs, options("grid", exclusion={"catalog": catalog})).rate_model
    by_region = fit_acceptance(on_runs, options("grid"), exclusion=CircleSkyRegion(source, 0.4 * u.deg)).rate_model
    assert np.array_equal(by_catalog.counts, by_region.counts)
    assert np.array_equal(by_catalog.exposure, by_region.exposure)


@pytest.mark.parametrize(
    "given, match",
    [
        ({}, "one of them is needed"),
        ({"radius": "0.3 deg", "radius_column": "size"}, "one of them is needed"),
        ({"radius": "-0.3 deg"}, "radius is >= 0"),
        ({"radius": "0.3 deg", "magnitude": "mag"}, "both or none"),
        ({"radius": "0.3 deg", "path": "missing.ecsv"}, "no file"),
        ({"radius": "0.3 deg", "width": 3}, "width"),
    ],
)
def test_bad_catalogue_options(given, match, tmp_path):
    STARS.write(tmp_path / "stars.ecsv")
    with pytest.raises(InputError, match=match):
        AcceptanceConfig.coerce(options("grid", exclusion={"catalog": {"path": str(tmp_path / "stars.ecsv"), **given}}))


@pytest.mark.parametrize(
    "table, given, match",
    [
        (STARS, {"ra": "RAJ2000", "radius": "1 deg"}, "no column 'RAJ2000', but ra, dec, mag, size"),
        (STARS, {"radius_column": "r"}, "no column 'r'"),
        (STARS, {"radius": "1 deg", "magnitude": "Vmag", "magnitude_max": 3}, "no column 'Vmag'"),
        (STARS, {"radius_column": "mag2"}, "radii < 0"),
        (STARS, {"radius_column": "name"}, "holds no angles"),
        (STARS, {"ra": "hole", "radius": "1 deg"}, "1 rows of .* have no 'hole'"),
        (None, {"radius": "1 deg"}, "cannot be read as a table"),
    ],
)
def test_catalogues_that_cannot_be_used(table, given, match, tmp_path):
    path = tmp_path / "stars.ecsv"
    if table is None:
        path.write_text("no table")
    else:
        table = table.copy()
        table["mag2"], table["name"] = [-1.0, 0.1, 0.2], ["a", "b", "c"]
        table["hole"] = MaskedColumn([1.0, 2.0, 3.0], mask=[False, True, False])
        table.write(path)
    settings = AcceptanceConfig.coerce(options("grid", exclusion={"catalog": {"path": str(path), **given}}))
    with pytest.raises(InputError, match=match):
        make_exclusion(settings)


@pytest.mark.gammapy_data
def test_half_of_the_camera_on_dr1():
    """Crab runs, with no region at all: the rate is that of a fit with a circle around the Crab nebula."""
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    runs = list(store.get_observations([23523, 23526, 23559, 23592], required_irf=IRFS))
    energy = {"min": "0.5 TeV", "max": "20 TeV"}
    half = fit_acceptance(runs, config("radial", energy=energy)).rate_model
    crab = CircleSkyRegion(SkyCoord(83.633, 22.014, unit="deg"), 0.4 * u.deg)
    circle = fit_acceptance(runs, options("radial", energy=energy), exclusion=crab).rate_model
    x = np.linspace(0.05, 1.95, 20)
    rates = [(m.integral_grid(np.array([0.6, 20]), x, 0 * x)[0] * x).sum() for m in (half, circle)]
    assert rates[0] == pytest.approx(rates[1], rel=4 / np.sqrt(half.counts.sum()))


@pytest.mark.gammapy_data
def test_a_catalogue_on_dr1(tmp_path):
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    runs = list(store.get_observations([23523, 23526], required_irf=IRFS))
    Table({"ra": [83.633, 84.411], "dec": [22.014, 21.143], "V": [0.0, 3.0]}).write(tmp_path / "stars.csv")
    catalog = {"path": str(tmp_path / "stars.csv"), "radius": "0.3 deg", "magnitude": "V", "magnitude_max": 3.5}
    settings = options("radial", energy={"min": "0.5 TeV", "max": "20 TeV"})
    whole = fit_acceptance(runs, settings).rate_model
    without = fit_acceptance(runs, settings | {"exclusion": {"catalog": catalog}}).rate_model
    assert without.counts.sum() < whole.counts.sum() - 200  # the events of the Crab nebula
    assert np.all(without.exposure <= whole.exposure * 1.2)  # norms may move
