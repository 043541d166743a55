"""Cubes of a fit and pictures of them."""

from functools import cache

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import pytest
from astropy.io import fits
from background_irfs import irf_2d, irf_3d
from gammapy.data import DataStore
from gammapy.irf import Background2D, Background3D, FoVAlignment
from gammapy.maps import Map, WcsNDMap
from regions import CircleSkyRegion
from stores import IRFS, observations, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel, fit_acceptance
from gammapy_accmaker.errors import InputError

KINDS = ["radial", "grid"]


@cache
def model(kind):
    store = plain_store()
    runs = observations(store, store.on_obs_ids[:2])
    place = runs[0].pointing.fixed_icrs.directional_offset_by(90 * u.deg, 0.5 * u.deg)
    return fit_acceptance(runs, options(kind, "none"), exclusion=CircleSkyRegion(place, 0.3 * u.deg))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_and_exposure_are_those_of_the_fit(kind):
    fitted, cubes = model(kind), model(kind).cubes()
    assert set(cubes) == {"counts", "exposure", "measured_rate", "rate"}
    assert all(isinstance(c, WcsNDMap) and c.geom == cubes["counts"].geom for c in cubes.values())
    assert [cubes[k].unit for k in ("counts", "exposure")] == ["", "s"]
    assert np.allclose(cubes["counts"].data.sum((1, 2)), fitted.rate_model.counts.sum(1))
    exposure = cubes["exposure"].data
    ontime = fitted.run_table["ONTIME"].sum()
    assert exposure.max() == pytest.approx(ontime, rel=0.02 if kind == "grid" else 0.2)
    assert 0 < exposure[exposure > 0].min() < 0.95 * ontime  # the excluded source


@pytest.mark.parametrize("kind", KINDS)
def test_the_rates_agree(kind):
    """Counts over exposure and the model: within the Poisson error of each energy."""
    cubes = model(kind).cubes()
    geom = cubes["rate"].geom
    volume = cubes["exposure"].quantity * geom.bin_volume().to("MeV sr")
    expected = np.nansum((cubes["rate"].quantity * volume).to_value(""), axis=(1, 2))
    counts = cubes["counts"].data.sum((1, 2))
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected) + 1)
    measured = np.nansum((cubes["measured_rate"].quantity * volume).to_value(""), axis=(1, 2))
    assert np.allclose(measured, counts)


def test_longitude_and_latitude_are_those_of_the_camera():
    """The gradient of the truth has the same sign in the map as in the model."""
    cube, fitted = model("grid").cubes()["rate"], model("grid")
    energy = cube.geom.axes["energy"].center[8]
    for lon, lat in ((1.2, 0.3), (-1.2, 0.3), (0.1, -1.4)):
        got = cube.interp_by_coord({"lon": lon * u.deg, "lat": lat * u.deg, "energy": energy})[0]
        assert got == pytest.approx(fitted.rate(energy, lon * u.deg, lat * u.deg).value, rel=0.08)


def test_smoothing_by_counts():
    """The scatter falls, where the model is flat, to that of the counts under the kernel; the total stays."""
    cubes, smooth = model("grid").cubes(), model("grid").cubes(smooth_counts=400)
    k, near = (
        12,
        np.hypot(*cubes["rate"].geom.to_image().get_coord().skycoord.cartesian.xyz.value[1:]) < np.radians(1.5),
    )
    scatter = [np.nanstd((c["measured_rate"].data / c["rate"].data)[k, near]) for c in (cubes, smooth)]
    assert scatter[1] < 0.5 * scatter[0] and scatter[1] < 0.1
    assert np.array_equal(cubes["counts"].data, smooth["counts"].data)
    with pytest.raises(InputError, match="smooth_counts"):
        model("grid").cubes(smooth_counts=0)


def test_spline(tmp_path):
    """Fine bins of the fit are merged.

    One run without effects of its own: the cube is for one zenith angle and no shift.
    """
    store = plain_store()
    fitted = fit_acceptance(
        observations(store, store.on_obs_ids[:1]),
        {"energy": {"min": "0.2 TeV", "max": "20 TeV"}, "run_effects": {"type": "none"}},
    )
    cubes = fitted.cubes()
    assert cubes["counts"].geom.data_shape == (20, 50, 50)
    counts = cubes["counts"].data.sum()
    assert counts > 1e4 and counts == fitted.fit_counts.counts.sum()
    volume = cubes["exposure"].quantity * cubes["rate"].geom.bin_volume().to("MeV sr")
    assert np.nansum((cubes["rate"].quantity * volume).to_value("")) == pytest.approx(counts, rel=0.02)
    fitted.write(tmp_path / "model.fits")
    again = AcceptanceModel.read(tmp_path / "model.fits").cubes()
    assert all(np.array_equal(again[n].data, cubes[n].data, equal_nan=True) for n in cubes)


def test_a_model_from_elsewhere_has_a_rate_alone():
    cubes = AcceptanceModel.from_irf(irf_3d()).cubes()
    assert set(cubes) == {"rate"} and np.all(cubes["rate"].data > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_write_a_table(kind, tmp_path):
    path = tmp_path / "cube.fits"
    model(kind).write_cube(path)
    irf = (Background2D if kind == "radial" else Background3D).read(path)
    assert irf.fov_alignment == FoVAlignment.ALTAZ
    again = AcceptanceModel.from_irf(irf)
    at = ([0.3, 1, 5] * u.TeV, 0.7 * u.deg, -0.4 * u.deg)
    assert u.allclose(again.rate(*at), model(kind).rate(*at), rtol=0.02)
    with pytest.raises(InputError, match="overwrite=True"):
        model(kind).write_cube(path)
    model(kind).write_cube(path, overwrite=True)


@pytest.mark.parametrize("kind", KINDS)
def test_write_images(kind, tmp_path):
    path = tmp_path / "cube.fits"
    model(kind).write_cube(path, "image")
    cubes = model(kind).cubes()
    for name, cube in cubes.items():
        again = Map.read(path, hdu=name.upper())
        assert np.allclose(again.data, cube.data, equal_nan=True, rtol=1e-6) and again.unit == cube.unit
        assert np.allclose(again.geom.axes["energy"].edges.value, cube.geom.axes["energy"].edges.value)
    with fits.open(path) as hdulist:
        first = next(hdu for hdu in hdulist if hdu.is_image and hdu.data is not None)
        assert first.name == "RATE" and first.header["FOVALIGN"] == "ALTAZ" and first.header["NAXIS"] == 3
        assert first.header["CTYPE1"] == "RA---CAR" and u.Unit(first.header["BUNIT"]) == cubes["rate"].unit
    with pytest.raises(InputError, match="'table' or 'image'"):
        model(kind).write_cube(tmp_path / "other", "ascii")


@pytest.mark.parametrize("kind", KINDS)
def test_pictures(kind):
    fitted = model(kind)
    _, axes = plt.subplots(1, 3)
    assert fitted.plot_image(1 * u.TeV, ax=axes[0]) is axes[0]
    assert fitted.plot_spectrum([0.5, 1.5] * u.deg, ax=axes[1]) is axes[1]
    assert fitted.plot_radial([0.5, 2] * u.TeV, ax=axes[2]) is axes[2]
    assert "deg" in axes[0].get_xlabel() and "TeV" in axes[1].get_xlabel() and "MeV" in axes[2].get_ylabel()
    line = axes[1].lines[0]
    energy, rate = line.get_data()
    angle = np.linspace(0, 2 * np.pi, 200)[:-1]
    ring = fitted.rate(energy[100] * u.TeV, 0.5 * np.cos(angle) * u.deg, 0.5 * np.sin(angle) * u.deg).value.mean()
    assert rate[100] == pytest.approx(ring, rel=0.01)
    plt.close("all")
    assert fitted.plot_image(1000 * u.GeV) is plt.gca() and "1 TeV" in plt.gca().get_title()
    plt.close("all")
    figure = fitted.peek()
    assert len(figure.axes) >= 4
    plt.close("all")


@pytest.mark.gammapy_data
def test_dr1():
    """This work made use of data from the H.E.S.S. DL3 DR1, H.E.S.S. collaboration, 2018."""
    runs = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations([33787, 33788], required_irf=IRFS)
    fitted = fit_acceptance(runs, options("grid", "none", energy={"min": "0.5 TeV", "max": "20 TeV"}))
    cubes = fitted.cubes()
    events = [r.events.select_energy([0.5, 20] * u.TeV).table for r in runs]
    in_square = fitted.run_table["COUNTS"].sum()
    assert cubes["counts"].data.sum() == pytest.approx(in_square)
    assert 0.5 * sum(map(len, events)) < in_square <= sum(map(len, events))
    assert cubes["exposure"].data.max() == pytest.approx(sum(r.gti.time_sum.to_value("s") for r in runs), rel=1e-3)


def test_off_runs_keep_their_cubes():
    store = plain_store()
    maker = AcceptanceBackgroundMaker(options("radial", "none"))
    maker.fit(observations(store, store.on_obs_ids[:1]), observations(store, store.off_obs_ids[:1]))
    assert maker.model.cubes()["counts"].data.sum() == pytest.approx(maker.model.rate_model.counts.sum())
    assert AcceptanceModel.from_irf(irf_2d()).fit_counts is None
