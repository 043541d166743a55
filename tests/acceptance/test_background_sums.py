"""Errors of sums of the background, and the modes that they are made of."""

import astropy.units as u
import numpy as np
import pytest
from gammapy.maps import Map, MapAxis, RegionGeom, WcsGeom
from regions import CircleSkyRegion
from stores import full_store, observations
from test_spline_maker import maker

from gammapy_accmaker import background_sum_error
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.errors import InputError


def runs():
    return observations(full_store())[:2]


def geoms(nbin, width=4):
    center = runs()[0].pointing.fixed_icrs
    axis = MapAxis.from_energy_bounds("0.4 TeV", "10 TeV", nbin=nbin)
    circle = CircleSkyRegion(center.directional_offset_by(40 * u.deg, 0.5 * u.deg), 0.8 * u.deg)
    return WcsGeom.create(skydir=center, width=width, binsz=0.05, axes=[axis]), RegionGeom(circle, axes=[axis]), circle


def sums_of_modes(geom, run, circle):
    inside = geom.to_image().region_mask([circle]).data
    modes = maker().make_background_modes(geom, run)
    return [mode.meta for mode in modes], np.array([mode.data[:, inside].sum(1) for mode in modes])


def test_modes_of_runs_add_up_to_the_error_of_the_sum():
    geom, _, circle = geoms(3)
    found = [sums_of_modes(geom, run, circle) for run in runs()]
    rate, own = ([sums[[meta["kind"] == kind for meta in metas]] for metas, sums in found] for kind in ("rate", "run"))
    first, second = ([meta["index"] for meta in metas if meta["kind"] == "rate"] for metas, _ in found)
    assert first == second == list(range(len(rate[0])))
    by_hand = np.sqrt((sum(rate) ** 2).sum(0) + sum((sums**2).sum(0) for sums in own))
    exact = background_sum_error(maker(), geom, runs(), region=circle)
    np.testing.assert_allclose(by_hand, exact, rtol=0.06)
    assert np.all(by_hand < 1.001 * exact)
    # of one run taken twice, the changes by the rate add up and those by the run do not
    twice = background_sum_error(maker(), geom, [runs()[0]] * 2, region=circle)
    shared, of_run = (
        maker().background_errors(geom, runs()[0]).of_sum(geom.to_image().region_mask([circle]).data.ravel())
    )
    np.testing.assert_allclose(twice**2, 4 * (shared**2).sum(1) + 2 * (of_run**2).sum(1))
    mask = Map.from_geom(geom.to_image(), data=geom.to_image().region_mask([circle]).data)
    np.testing.assert_allclose(background_sum_error(maker(), [geom] * 2, runs(), region=mask), exact)


def test_error_of_a_wide_bin_and_of_a_region_is_that_of_their_sums():
    run = runs()[0]
    (geom, region, circle), (fine, _, _) = geoms(1), geoms(12)
    in_region = maker().make_background_error(region, run).data.ravel()
    np.testing.assert_allclose(in_region, background_sum_error(maker(), geom, run, region=circle), rtol=0.02)
    np.testing.assert_allclose(in_region, background_sum_error(maker(), region, run), rtol=1e-6)
    # the sum over twelve energies, with their correlation, is the one wide bin
    _, sums = sums_of_modes(fine, run, circle)
    np.testing.assert_allclose(np.sqrt((sums.sum(1) ** 2).sum()), in_region[0], rtol=0.05)
    # and not what comes of it without, or with all of it
    apart = background_sum_error(maker(), fine, run, region=circle)
    assert np.sqrt((apart**2).sum()) < 0.9 * in_region[0] < 0.9 * apart.sum()


def test_error_of_coarse_pixels_is_that_of_the_fine_ones_in_them():
    run, (fine, _, _) = runs()[0], geoms(1, width=2)
    coarse = fine.to_image().downsample(20).to_cube(fine.axes)
    error = maker().make_background_error(coarse, run).data[0]
    mask = np.zeros(fine.to_image().data_shape, dtype=bool)
    mask[:20, 20:] = True
    expected = background_sum_error(maker(), fine, run, region=Map.from_geom(fine.to_image(), data=mask))
    assert error.shape == (2, 2) and error[0, 1] == pytest.approx(expected[0], rel=0.02)


def test_errors_of_pixels_are_those_of_the_rate():
    """Without correlation nothing changes: the error of a narrow bin is that of the rate in its middle."""
    run, (geom, _, _) = runs()[0], geoms(30, width=2)
    background, error = (f(geom, run).data for f in (maker().make_background, maker().make_background_error))
    adapted = maker().adapt(run)
    middle = (slice(None), 20, 20)
    sigma = adapted.relative_error_grid(
        geom.axes["energy"].center.to_value("TeV"),
        np.zeros(1),
        np.zeros(1),
        observation_track(run, "altaz").mean_cos_zenith,
    )[:, 0]
    # the error on the axis varies within a step of the polar grid
    np.testing.assert_allclose((error / background)[middle], sigma, rtol=0.15)


def test_a_map_of_the_whole_sky_is_divided_where_the_run_looks(monkeypatch):
    run, (fine, _, _) = runs()[0], geoms(2)
    sky = WcsGeom.create(binsz=0.5, axes=fine.axes)
    around = WcsGeom.create(skydir=run.pointing.fixed_icrs, binsz=0.5, width=10, axes=fine.axes)
    upsample, sizes = WcsGeom.upsample, []
    monkeypatch.setattr(WcsGeom, "upsample", lambda g, *a, **k: sizes.append(g.data_shape) or upsample(g, *a, **k))
    error = maker().make_background_error(sky, run)
    assert error.data.shape == sky.data_shape and np.max(sizes) < 60
    separation = sky.to_image().separation(run.pointing.fixed_icrs).deg
    assert separation[error.data[0] > 0].max() < 4
    sums = [background_sum_error(maker(), geom, run) for geom in (sky, around)]
    np.testing.assert_allclose(*sums, rtol=5e-3)
    assert error.data.sum() == pytest.approx(maker().make_background_error(around, run).data.sum(), rel=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"maker": maker().model}, "maker: got AcceptanceModel"),
        (lambda g: {"geoms": [g[0]]}, "geoms: got 1 for 2"),
        (lambda g: {"geoms": [g[0], geoms(2)[0]]}, "energy axes differ"),
        (lambda g: {"geoms": "map"}, "geoms"),
        (lambda g: {"geoms": g[1], "region": g[2]}, "RegionGeom"),
        (
            lambda g: {"region": CircleSkyRegion(g[2].center.directional_offset_by(0 * u.deg, 30 * u.deg), 1 * u.deg)},
            "no pixel",
        ),
        (lambda g: {"region": "circle"}, "region: got str"),
        (lambda g: {"region": Map.from_geom(g[0].to_image().downsample(2))}, "mask of shape"),
    ],
)
def test_what_cannot_be_summed_is_named(change, message):
    given = geoms(3)
    arguments = {"maker": maker(), "geoms": given[0], "observations": runs()} | change(given)
    with pytest.raises(InputError, match=message):
        background_sum_error(**arguments)
