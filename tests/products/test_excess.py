"""Runs stacked on the sky: against plain loops over their pixels, and gammapy's geometry."""

import itertools
import tracemalloc
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from regions import CircleSkyRegion
from stores import observations as observations_of
from stores import options, plain_store

from gammapy_accmaker import fit_acceptance
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.camera.bins import offset
from gammapy_accmaker.camera.track import unit_vectors, vectors_to_lonlat
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sky_counts import SKY_PIXEL, sky_bands
from gammapy_accmaker.products.background import icrs_vectors
from gammapy_accmaker.products.excess import ExcessField, _pixel_numbers, _rate_points, excess_fields


def matrix_at(lon, lat):
    (lon, lat), zero = np.radians([lon, lat]), 0.0
    west, north = (
        [np.sin(lon), -np.cos(lon), zero],
        [-np.sin(lat) * np.cos(lon), -np.sin(lat) * np.sin(lon), np.cos(lat)],
    )
    return np.stack([unit_vectors(lon, lat), west, north])


POINTINGS = [(83.6, 22.0), (0.0, 0.0), (359.99, -60.0), (120.0, 89.5), (10.0, 90.0), (200.0, -90.0)]


@pytest.mark.parametrize("pointing", POINTINGS, ids=str)
def test_pixels_are_those_of_the_geometry(pointing):
    none, side = np.zeros((1, 60, 60)), 60
    field = ExcessField(matrix_at(*pointing), none, none, none, none[0] == 0, ())
    np.testing.assert_allclose(field.xyz, icrs_vectors(field.geom), atol=2e-9)
    xyz = field.xyz + np.random.default_rng(1).normal(scale=1e-3, size=field.xyz.shape)
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    lon, lat = np.degrees(vectors_to_lonlat(xyz))
    x, y = field.geom.coord_to_idx((lon * u.deg, lat * u.deg))
    inside = (x >= 0) & (y >= 0)  # of the image
    assert inside.sum() > 3500
    assert np.array_equal(_pixel_numbers(xyz, field.matrix, side)[inside], (y * side + x)[inside])


@pytest.mark.parametrize("radial", [True, False])
def test_the_rate_goes_on_beyond_the_last_offset_as_it_is_there(radial):
    lon, lat, at_node = _rate_points(1.5, radial)
    at = (np.arange(len(at_node)) - len(at_node) // 2) * 0.2
    for (j, i), point in np.ndenumerate(at_node):
        wanted = float(offset(at[i], at[j]))
        assert offset(lon[point], lat[point]) == pytest.approx(min(wanted, 1.5), rel=1e-4, abs=1e-9)
        if not radial and wanted <= 1.5:
            assert (lon[point], lat[point]) == pytest.approx((at[i], at[j]), abs=1e-9)


@pytest.fixture(scope="module", params=["radial", "grid"])
def fitted(request):
    observations = list(observations_of(plain_store()))
    model = fit_acceptance(observations, options(request.param))
    reduction = Reduction.of(AcceptanceConfig.coerce(options(request.param)))
    runs, _ = reduction.reduce_all(observations)
    settings, edges = reduction.config.run_effects.settings, reduction.bins.energy_edges
    return runs, [model.rate_model.adapt(run, reduction.bins, settings).model for run in runs], edges


def plainly_stacked(runs, models, bands, edges, reach, field, excluded):
    """Counts, and what is expected where the rate is taken at each pixel, run by run and pixel by pixel."""
    n_band = len(sky_bands(edges)) - 1
    first = np.searchsorted(sky_bands(edges), bands * (1 - 1e-9))
    counts, expected = np.zeros((2, len(bands) - 1, field.geom.data_shape[1] * field.geom.data_shape[0]))
    for run, model in zip(runs, models, strict=True):
        image = run.sky.image(n_band)
        sky = [
            (run.sky.pixels @ turn.T, k, s)
            for turn, k, s in zip(run.sky.turns, run.sky.slices, run.sky.seconds, strict=True)
        ]
        seen = np.all([camera[:, 0] > np.cos(np.radians(reach - 0.75 * SKY_PIXEL)) for camera, _, _ in sky], axis=0)
        _, row = vectors_to_lonlat(run.sky.pixels)
        mu = np.zeros((len(bands) - 1, len(seen)))
        for camera, k, seconds in sky:
            part, at = run.slices[k], np.degrees(vectors_to_lonlat(camera[seen]))
            rate = model.at_azimuth(part.azimuth).integral_grid(bands, *at, part.cos_zenith)
            mu[:, seen] += seconds * rate * np.radians(SKY_PIXEL) ** 2 * np.cos(row[seen])
        lon, lat = np.degrees(vectors_to_lonlat(run.sky.pixels @ run.sky.matrix))
        kept = seen & ~(SkyCoord(lon, lat, unit="deg").separation(excluded.center) < excluded.radius)
        x, y = field.geom.coord_to_idx((lon * u.deg, lat * u.deg))
        for band, (start, stop) in enumerate(itertools.pairwise(first)):
            of_band = image[start:stop].sum(0)
            scale = of_band[kept].sum() / mu[band, kept].sum()
            for pixel in np.flatnonzero(seen):
                counts[band, y[pixel] * field.geom.data_shape[1] + x[pixel]] += of_band[pixel]
                expected[band, y[pixel] * field.geom.data_shape[1] + x[pixel]] += scale * mu[band, pixel]
    return counts.reshape(field.counts.shape), expected.reshape(field.counts.shape)


def test_a_stack_is_the_sum_of_the_pixels_of_its_runs(fitted):
    runs, models, edges = fitted
    bands, reach = sky_bands(edges)[[0, 2, -1]], models[0].offset_max
    lon, lat = np.degrees(vectors_to_lonlat(runs[0].sky.matrix[0]))
    excluded = CircleSkyRegion(SkyCoord(lon, lat + 0.4, unit="deg"), 0.3 * u.deg)
    fields = excess_fields(runs, models, bands, edges, reach, Exclusion(excluded))
    assert sorted(place for field in fields for place in field.places) == [run.place for run in runs]
    for field in fields:
        members = [k for k, run in enumerate(runs) if run.place in field.places]
        counts, expected = plainly_stacked(
            [runs[k] for k in members], [models[k] for k in members], bands, edges, reach, field, excluded
        )
        assert np.array_equal(field.counts, counts) and not field.known.any()
        assert np.all(field.covered[(expected > 0).any(0)]) and not field.expected[:, ~field.covered].any()
        np.testing.assert_allclose(field.expected.sum((1, 2)), expected.sum((1, 2)), rtol=1e-3)
        inner = (field.geom.separation(field.geom.center_skydir).deg < 0.5 * reach) & (expected.min(0) > 0)
        assert np.abs(field.expected / np.maximum(expected, 1e-9) - 1)[:, inner].mean() < 0.02


class Even:
    """A rate that is the same everywhere."""

    is_radial, offset_max = True, 8.0

    def at_azimuth(self, azimuth):
        return self

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith):
        return np.ones((len(energy_edges) - 1, len(fov_lon)))


def test_wide_fields_lie_within_their_image(fitted):
    """The tangential plane is wider than the angle: by 4 pixels at 16 deg."""
    runs, _, edges = fitted
    wide = []
    for shift, run in enumerate(runs[:2]):
        sky = replace(
            run.sky, matrix=matrix_at(100 + 7.5 * shift, 0), side=160, index=np.zeros(0, int), counts=np.zeros(0)
        )
        wide.append(replace(run, sky=sky))
    (field,) = excess_fields(wide, [Even(), Even()], edges[[0, -1]], edges, 8.0)
    seconds = [run.sky.seconds.sum() * 2 * np.pi * (1 - np.cos(np.radians(7.93))) for run in wide]
    assert field.expected.sum() == pytest.approx(sum(seconds), rel=5e-3)
    assert not field.expected[:, [0, -1]].any() and not field.expected[:, :, [0, -1]].any()
    center = (field.xyz * field.expected[0].ravel()[:, None]).sum(0)
    lon, lat = np.degrees(vectors_to_lonlat(center / np.linalg.norm(center)))
    share = wide[1].sky.seconds.sum() / sum(run.sky.seconds.sum() for run in wide)
    assert (lon, lat) == pytest.approx((100 + 7.5 * share, 0), abs=0.03)


def test_a_field_of_many_runs_takes_no_more_memory(fitted):
    """Nor are its sums others, however the runs are put together."""
    runs, models, edges = fitted
    peaks, totals = [], []
    for times in (16, 80):
        many = [replace(runs[0], place=k) for k in range(times)]
        tracemalloc.start()
        (field,) = excess_fields(many, models[:1] * times, edges[[0, -1]], edges, models[0].offset_max)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        totals.append(field.expected / times)
    np.testing.assert_allclose(totals[1], totals[0], rtol=1e-12)
    assert peaks[1] < 2 * peaks[0]
