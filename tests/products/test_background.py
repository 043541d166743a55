"""Background maps: the fast way against the plain one, against the truth of the simulation, and its conventions."""

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.time import TimeDelta
from gammapy.data import GTI
from gammapy.maps import HpxGeom, MapAxis, RegionGeom, WcsGeom
from helpers import HESS, START, drifting, make_observation, tracking
from regions import CircleSkyRegion, PointSkyRegion
from stores import AnalyticModel, energy_axis, fitted, full_store, observations, plain_store, sky_geom

from gammapy_accmaker.camera.bins import energy_edges_from_axis
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.errors import InputError, ObservationError
from gammapy_accmaker.products import background
from gammapy_accmaker.products.background import (
    expected_counts_directly,
    icrs_vectors,
    make_background_map,
    pixel_solid_angles,
)

EDGES = (0.2, 0.5, 1, 3, 10)
KINDS = ["radial", "grid"]


@pytest.fixture(scope="module")
def track():
    """Half an hour near culmination, where the field turns fast."""
    return observation_track(make_observation(tracking(120, 75)), "altaz")


@pytest.fixture(scope="module")
def pointing():
    return tracking(120, 75).fixed_icrs


def directly(model, track, geom, step=60.0):
    """The reference: the model at every time node and pixel centre, shape (energy, y, x)."""
    image = geom.to_image()
    edges = energy_edges_from_axis(geom.axes["energy"])
    solid_angle = image.solid_angle().to_value("sr").ravel()
    return expected_counts_directly(model, track, icrs_vectors(image), solid_angle, edges, step).reshape(
        geom.data_shape
    )


def in_energy(data):
    return np.asarray(data).sum((1, 2))


def all_sky(binsz, *, center, proj, frame="icrs"):
    """Map of the whole sky in pixels that are divided."""
    npix = round(360 / binsz), round(180 / binsz)
    return WcsGeom.create(
        skydir=center, npix=npix, binsz=binsz, proj=proj, frame=frame, axes=[energy_axis((0.3, 1, 10))]
    )


@pytest.mark.parametrize(
    "options",
    [
        {"center": (0, 0), "proj": "AIT"},
        {"center": (0, 0), "proj": "AIT", "frame": "galactic"},
        {"center": "behind", "proj": "CAR"},
        {"center": "behind", "proj": "AIT"},
    ],
    ids=str,
)
def test_a_map_of_the_whole_sky_is_divided_where_the_run_looks(options, track, pointing, monkeypatch):
    """Pixels of all of it were divided: 9 million of 0.25 deg, in 100 s; a run may lie across the rim of the map."""
    behind = (pointing.ra.deg + 180) % 360, 0.0
    geom = all_sky(0.25, **options | {"center": behind if options["center"] == "behind" else options["center"]})
    upsample, sizes = WcsGeom.upsample, []
    monkeypatch.setattr(WcsGeom, "upsample", lambda g, *a, **k: sizes.append(g.data_shape) or upsample(g, *a, **k))
    found = make_background_map(fitted("radial"), track, geom, 60.0)
    around = make_background_map(
        fitted("radial"), track, sky_geom(pointing, edges=(0.3, 1, 10), width=5.6, binsz=0.05), 60.0
    )
    at_the_rim = options == {"center": "behind", "proj": "AIT"}  # where pixels are partly outside of the sky
    assert in_energy(found.data) == pytest.approx(in_energy(around.data), rel=0.03 if at_the_rim else 5e-3)
    separation = geom.to_image().separation(pointing).deg
    assert np.nanmax(separation[found.data[0] > 0]) < 3.0
    (size,) = sizes
    assert size[0] * size[1] < 0.05 * separation.size


@pytest.mark.parametrize("frame", ["icrs", "galactic"])
@pytest.mark.parametrize("kind", [*KINDS, "analytic"])
def test_fast_is_direct(kind, frame, track, pointing):
    model = AnalyticModel() if kind == "analytic" else fitted(kind)
    geom = sky_geom(pointing, edges=EDGES, width=4.0, frame=frame)
    fast, slow = make_background_map(model, track, geom, 60.0).data, directly(model, track, geom)
    # an analytic model has no edge of its own at its largest offset
    near = geom.to_image().separation(pointing).deg < 2.4
    fast, slow = fast * near, slow * near
    assert np.all(np.abs(in_energy(fast) / in_energy(slow) - 1) < 1e-3)
    rms = np.sqrt(np.mean((fast / np.where(slow > 0, slow, 1) - 1)[slow > 0] ** 2))
    assert rms < (0.01 if kind != "analytic" else 0.001)


@pytest.mark.parametrize("kind", KINDS)
def test_coarse_pixels_hold_the_integral(kind, track, pointing):
    coarse = sky_geom(pointing, edges=EDGES, width=4.0, binsz=0.5)
    fine = coarse.upsample(20)
    model = fitted(kind)
    got = make_background_map(model, track, coarse, 60.0).data
    want = directly(model, track, fine).reshape(4, 8, 20, 8, 20).sum((2, 4))
    assert np.all(np.abs(in_energy(got) / in_energy(want) - 1) < 1e-3)
    inside = coarse.to_image().separation(pointing).deg < 1.8
    assert np.all(np.abs(got / want - 1)[:, inside] < 0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_region_is_the_map_inside(kind, track, pointing):
    center = pointing.directional_offset_by(40 * u.deg, 1 * u.deg)
    region = CircleSkyRegion(center, 0.3 * u.deg)
    got = make_background_map(fitted(kind), track, RegionGeom.create(region, axes=[energy_axis(EDGES)]), 60.0)
    geom = sky_geom(center, edges=EDGES, width=0.8, binsz=0.005)
    inside = geom.to_image().region_mask([region]).data
    want = in_energy(directly(fitted(kind), track, geom) * inside)
    assert got.data.shape == (4, 1, 1) and got.unit == ""
    assert np.allclose(got.data.ravel(), want, rtol=3e-3)


@pytest.mark.parametrize("radius", [0.003, 0.02, 0.05, 0.1, 0.3])
def test_a_circle_counts_in_its_own_area(radius, track, pointing):
    """On gammapy's pixels of 0.1 deg it was 0.6 % too large at 0.1 deg, 5 % too small at 0.02,
    and below 0.006 there was none."""
    model, axes = fitted("radial"), [energy_axis(EDGES)]
    center = pointing.directional_offset_by(40 * u.deg, 1 * u.deg)
    got = in_energy(
        make_background_map(
            model, track, RegionGeom.create(CircleSkyRegion(center, radius * u.deg), axes=axes), 60.0
        ).data
    )
    # the rate in the middle is that over the circle, up to its curvature
    pixel = sky_geom(center, edges=EDGES, width=0.003, binsz=0.001)
    area = 2 * np.pi * (1 - np.cos(np.radians(radius))) / pixel.solid_angle().to_value("sr")[0, 1, 1]
    want = directly(model, track, pixel)[:, 1, 1] * area
    assert np.allclose(got, want, rtol=1.5e-3 if radius < 0.2 else 0.03)


def test_regions_that_lie_apart_count_as_the_sum_of_them(track, pointing):
    """As reflected regions do: the image that gammapy puts around them cut off 5 %."""
    model, axes = fitted("radial"), [energy_axis(EDGES)]
    circles = [CircleSkyRegion(pointing.directional_offset_by(a * u.deg, 1 * u.deg), 0.2 * u.deg) for a in (0, 90, 180)]
    one_by_one, together = (
        sum(in_energy(make_background_map(model, track, geom, 60.0).data) for geom in geoms)
        for geoms in ([RegionGeom.create(c, axes=axes) for c in circles], [RegionGeom.from_regions(circles, axes=axes)])
    )
    assert np.allclose(together, one_by_one, rtol=1e-3)


def test_galactic_region_is_the_icrs_region(track, pointing):
    region = CircleSkyRegion(pointing, 0.5 * u.deg)
    there = CircleSkyRegion(pointing.galactic, 0.5 * u.deg)
    here, there = (
        make_background_map(fitted("grid"), track, RegionGeom.create(r, axes=[energy_axis(EDGES)]), 60.0).data
        for r in (region, there)
    )
    assert np.allclose(here, there, rtol=2e-3)


@pytest.mark.parametrize("alignment", ["altaz", "radec"])
@pytest.mark.parametrize("azimuth", [90, 270])
def test_trap_fov_lon_grows_with_decreasing_azimuth_and_right_ascension(alignment, azimuth):
    """A model that is brighter at positive FOV_LON (0.3 TeV) and at negative FOV_LAT (3 TeV)."""
    observation = make_observation(tracking(azimuth, 50), [(0, 60)])
    pointing = observation.pointing.fixed_icrs
    if alignment == "altaz":
        # the direction of smaller azimuth, and of larger altitude
        altaz = observation.get_pointing_altaz(START + 30 * u.s)
        frame = altaz.frame.replicate_without_data() if hasattr(altaz, "frame") else altaz.replicate_without_data()
        step = 1 / np.cos(altaz.alt.rad)
        right = SkyCoord(az=altaz.az - step * u.deg, alt=altaz.alt, frame=frame).icrs
        up = SkyCoord(az=altaz.az, alt=altaz.alt + 1 * u.deg, frame=frame).icrs
    else:
        right = pointing.spherical_offsets_by(-1 * u.deg, 0 * u.deg)
        up = pointing.spherical_offsets_by(0 * u.deg, 1 * u.deg)
    track = observation_track(observation, alignment)
    geom = sky_geom(pointing, edges=(0.2, 0.4, 2, 4), width=4)
    background = make_background_map(AnalyticModel(), track, geom, 60.0)

    def ratio(position, k):
        other = position.directional_offset_by(position.position_angle(pointing), 2 * position.separation(pointing))
        energy = background.geom.axes["energy"].center[k]
        here, there = (background.interp_by_coord({"skycoord": p, "energy": energy}) for p in (position, other))
        return (here / there).item()

    expected = {e: AnalyticModel().truth.asymmetry(e, *p) for e, p in ((0.27, (1, 0)), (2.7, (0, 1)))}
    opposite = {e: AnalyticModel().truth.asymmetry(e, *p) for e, p in ((0.27, (-1, 0)), (2.7, (0, -1)))}
    assert ratio(right, 0) == pytest.approx(expected[0.27] / opposite[0.27], abs=0.01)
    assert ratio(up, 2) == pytest.approx(expected[2.7] / opposite[2.7], abs=0.01)
    assert ratio(right, 0) > 1.08 and ratio(up, 2) < 0.93


def test_trap_gti_gaps_count(pointing):
    """The field turns during the gap: a background of one block from the start would be seen elsewhere."""
    parts = [(0, 600), (3000, 3600)]
    geom = sky_geom(pointing, edges=(0.2, 10), width=4)
    both, first, second = (
        make_background_map(
            AnalyticModel(), observation_track(make_observation(tracking(120, 75), p), "altaz"), geom, 60.0
        ).data
        for p in (parts, parts[:1], parts[1:])
    )
    near = geom.to_image().separation(pointing).deg < 1.95
    assert np.allclose(both[:, near], (first + second)[:, near], rtol=1e-3)
    # the test can tell: one block of 1200 s differs
    block = make_background_map(
        AnalyticModel(), observation_track(make_observation(tracking(120, 75), [(0, 1200)]), "altaz"), geom, 60.0
    ).data
    assert np.abs(block[:, near] / both[:, near] - 1).max() > 0.01


def test_trap_the_rate_is_per_ontime(pointing):
    """Dead time does not enter: gammapy multiplies a background rate by the ontime."""
    geom = sky_geom(pointing)
    some, none = (
        make_background_map(
            fitted("grid"), observation_track(make_observation(tracking(120, 75), deadtime=d), "altaz"), geom, 60.0
        ).data
        for d in (0.3, 0.0)
    )
    assert np.array_equal(some, none)


@pytest.mark.parametrize("kind", ["analytic", "grid"])
def test_drift_runs_take_the_direct_path(kind):
    model = AnalyticModel() if kind == "analytic" else fitted(kind)
    pointing = drifting(120, 60)
    observation = make_observation(pointing, [(0, 900)])
    track = observation_track(observation, "altaz")
    center = pointing.get_icrs(START + TimeDelta(450 * u.s), HESS)
    geom = WcsGeom.create(skydir=SkyCoord(center.ra, center.dec), width=(9, 6), binsz=0.1, axes=[energy_axis(EDGES)])
    got = make_background_map(model, track, geom, 60.0).data
    assert np.allclose(got, directly(model, track, geom), rtol=1e-9, atol=1e-12) or kind == "analytic"
    # what the camera sees does not depend on how the sky moves through it
    fixed = observation_track(make_observation(tracking(120, 60, after=450), [(0, 900)]), "altaz")
    fixed_geom = sky_geom(tracking(120, 60, after=450).fixed_icrs, edges=EDGES, width=6, binsz=0.1)
    want = make_background_map(model, fixed, fixed_geom, 60.0).data
    if kind == "grid":
        assert np.allclose(in_energy(got), in_energy(want), rtol=5e-3)
    assert np.all(got >= 0) and np.all(np.isfinite(got))


@pytest.mark.parametrize("which", ["wobble with a gap", "OFF"])
def test_the_truth_of_the_simulation_is_predicted(which):
    """An exact model on the sky against the simulation's own expectation in the camera: zenith, gap, rotation, area."""
    store = full_store()
    obs_id = store.on_obs_ids[0] if which != "OFF" else store.off_obs_ids[1]
    (observation,) = observations(store, [obs_id])
    model = AnalyticModel(truth=store.truth, norm=store.run_norm[obs_id], shift=store.run_shift[obs_id])
    center = observation.pointing.fixed_icrs
    geom = sky_geom(center, edges=EDGES, width=5.2, binsz=0.04)
    got = make_background_map(model, observation_track(observation, "altaz"), geom, 60.0).data
    pixels = np.linspace(-2.5, 2.5, 126)
    middle = 0.5 * (pixels[1:] + pixels[:-1])
    inside = np.hypot(*np.meshgrid(middle, middle, indexing="ij")) < 2.2
    truth = store.expected_counts(obs_id, EDGES, pixels, pixels)[:, inside].sum(1)
    near = geom.to_image().separation(center).deg < 2.2
    assert np.allclose(got[:, near].sum(1), truth, rtol=3e-3)


def test_energies_beyond_the_model_are_empty(track, pointing):
    geom = sky_geom(pointing, edges=(0.001, 0.01, 0.2, 1, 90, 300, 3000))
    data = make_background_map(fitted("grid"), track, geom, 60.0).data
    assert np.array_equal(in_energy(data) > 0, [False, True, True, True, False, False]) or in_energy(data)[4] > 0
    assert np.all(np.isfinite(data)) and np.all(data >= 0)


def test_units_of_the_energy_axis_do_not_matter(track, pointing):
    here = make_background_map(fitted("grid"), track, sky_geom(pointing), 60.0)
    axis = MapAxis.from_energy_edges([300, 1000, 3000, 10000], unit="GeV")
    there = make_background_map(fitted("grid"), track, here.geom.to_image().to_cube([axis]), 60.0)
    assert np.allclose(here.data, there.data, rtol=1e-9)
    assert there.geom.axes["energy"].unit == "GeV" and there.unit == ""


def test_a_map_of_half_the_sky(track, pointing):
    """Pixels where there is no sky have no background."""
    geom = WcsGeom.create(skydir=pointing, binsz=1, width=120, proj="SIN", axes=[energy_axis(EDGES)])
    assert np.isnan(geom.to_image().solid_angle().value).any() or np.isnan(geom.to_image().get_coord().lon.value).any()
    background = make_background_map(fitted("grid"), track, geom, 60.0).data
    assert np.all(np.isfinite(background))
    near = make_background_map(fitted("grid"), track, sky_geom(pointing, edges=EDGES, width=8, binsz=0.1), 60.0).data
    assert np.allclose(in_energy(background), in_energy(near), rtol=5e-3)


def test_steps_in_time(track, pointing):
    """A minute is fine enough; one step stands at the middle of the run."""
    geom = sky_geom(pointing, width=4)
    fine, minute, one = (make_background_map(AnalyticModel(), track, geom, step).data for step in (10.0, 60.0, None))
    near = geom.to_image().separation(pointing).deg < 1.9
    assert np.abs(minute[:, near] / fine[:, near] - 1).max() < 1e-3
    assert np.allclose(in_energy(one * near), in_energy(fine * near), rtol=0.01)


@pytest.mark.parametrize(
    ("geom", "named"),
    [
        (WcsGeom.create(npix=3), "axis 'energy'"),
        (
            WcsGeom.create(npix=3, axes=[MapAxis.from_energy_edges([1, 2], unit="TeV", name="energy_true")]),
            "energy_true",
        ),
        (WcsGeom.create(npix=3, axes=[MapAxis.from_edges([1, 2], unit="m", name="energy")]), "unit.*m.*TeV"),
        (WcsGeom.create(npix=3, axes=[energy_axis(), MapAxis.from_edges([0, 1], name="phase")]), "phase"),
        (HpxGeom.create(nside=4, axes=[energy_axis()]), "HpxGeom"),
        (RegionGeom.create(None, axes=[energy_axis()]), "region"),
    ],
)
def test_geometries_that_cannot_be_used(geom, named, track):
    with pytest.raises(InputError, match=named):
        make_background_map(fitted("grid"), track, geom, 60.0)


def test_a_point_region_has_no_area(track, pointing):
    with pytest.raises(InputError, match="area"):
        make_background_map(
            fitted("grid"), track, RegionGeom.create(PointSkyRegion(pointing), axes=[energy_axis()]), 60.0
        )


@pytest.mark.parametrize("edges", [(0.001, 0.01), (200, 300)])
def test_energies_outside_of_the_model_are_an_error(edges, track, pointing):
    with pytest.raises(InputError, match="outside of the model.*inside"):
        make_background_map(fitted("grid"), track, sky_geom(pointing, edges=edges), 60.0)


def test_no_overlap_is_an_error_of_the_observation(track, pointing):
    geom = sky_geom(pointing.directional_offset_by(0 * u.deg, 20 * u.deg))
    with pytest.raises(ObservationError, match="no pixel.*overlaps"):
        make_background_map(fitted("grid"), track, geom, 60.0)
    region = CircleSkyRegion(pointing.directional_offset_by(0 * u.deg, 20 * u.deg), 0.5 * u.deg)
    with pytest.raises(ObservationError, match="no pixel"):
        make_background_map(fitted("grid"), track, RegionGeom.create(region, axes=[energy_axis()]), 60.0)


def test_radec_needs_no_location(pointing):
    observation = make_observation(tracking(120, 75), location=None)
    data = make_background_map(fitted("grid"), observation_track(observation, "radec"), sky_geom(pointing), 60.0).data
    assert np.all(data.sum((1, 2)) > 0)
    with pytest.raises(ObservationError, match="location"):
        observation_track(observation, "altaz")


def test_the_time_of_a_gap_is_that_of_the_gti():
    """Ontime of the store's first run: 28 min, although it lasts 34."""
    (observation,) = observations(plain_store(), plain_store().on_obs_ids[:1])
    track = observation_track(observation, "altaz")
    assert len(track.intervals) == 2 and track.ontime == pytest.approx(28 * 60, abs=1)
    assert isinstance(observation.gti, GTI)


def test_a_region_takes_the_rings_around_it_alone(monkeypatch):
    """Its counts are those of the whole grid."""
    observation, model = make_observation(tracking(120, 60)), AnalyticModel()
    track, sizes, integral_grid = observation_track(observation, "altaz"), [], AnalyticModel.integral_grid

    def noting(self, energy_edges, fov_lon, fov_lat, cos_zenith):
        sizes.append(len(fov_lon))
        return integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith)

    monkeypatch.setattr(AnalyticModel, "integral_grid", noting)
    pointing = observation.pointing.fixed_icrs
    whole = sky_geom(pointing, width=5, binsz=0.02)
    make_background_map(model, track, whole, 60.0)
    for offset in (0.0, 1.0, model.offset_max - 0.1):
        region = CircleSkyRegion(pointing.directional_offset_by(70 * u.deg, offset * u.deg), 0.1 * u.deg)
        geom = RegionGeom.create(region, axes=[whole.axes["energy"]])
        counts = make_background_map(model, track, geom, 60.0).data.ravel()
        assert sizes[-1] < 0.3 * sizes[0]
        monkeypatch.setattr(background, "_rings_around", lambda model, camera: slice(None))
        np.testing.assert_allclose(counts, make_background_map(model, track, geom, 60.0).data.ravel(), rtol=1e-13)
        monkeypatch.undo()
        monkeypatch.setattr(AnalyticModel, "integral_grid", noting)


@pytest.mark.parametrize(
    "options",
    [
        {"skydir": (83.6, 22), "width": 5, "binsz": 0.02},
        {"skydir": (329, -30), "width": 3, "binsz": (0.02, 0.05), "proj": "TAN"},
        {"skydir": (0, 0), "width": 8, "binsz": 0.05, "frame": "galactic"},
        {"skydir": (10, 89), "width": 3, "binsz": 0.05, "proj": "STG"},
        {"binsz": 2, "proj": "AIT"},
        {"binsz": 2},
        {"skydir": (40, 10), "npix": (1, 1), "binsz": 1e-3},
    ],
)
def test_solid_angles_are_those_of_gammapy(options):
    image = WcsGeom.create(**options)
    theirs = image.solid_angle().to_value("sr")
    np.testing.assert_allclose(pixel_solid_angles(image), theirs, rtol=1e-11 * 0.02 / min(image.pixel_scales.deg))
