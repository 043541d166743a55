"""A bin of which an exclusion covers a part stands for its other part, in the reduction,
in a forward model and in a fit."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from helpers import make_observation, tracking
from regions import CircleSkyRegion
from stores import AnalyticModel

from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.counts import observation_track, reduce_observation
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.models.binned import fit_binned
from gammapy_accmaker.models.parametric.fit import fit_parametric

EDGES = np.geomspace(0.3, 10, 9)  # TeV
FINE = 40  # points along each side of a bin
BINS = {"radial": FovBins.rings(2.0, 4), "grid": FovBins.grid(2.0, 8)}
POINTING = tracking(110.0, 60.0)


def excluded(fov):
    """A circle that cuts many bins: of a grid off the axis, of rings near it."""
    separation, radius = (0.1, 1.3) if fov.is_radial else (1.3, 0.8)
    return CircleSkyRegion(POINTING.fixed_icrs.directional_offset_by(30 * u.deg, separation * u.deg), radius * u.deg)


def reduced(fov):
    """A run without turning, and for points in each bin whether they were seen."""
    run, exclusion = make_observation(POINTING), Exclusion([excluded(fov)])
    part = reduce_observation(run, CountsBins(EDGES, fov, "radec"), exclusion).whole()
    track = observation_track(run, "radec")
    lon, lat = fov.subpoints(FINE)
    x, y = np.radians(lon), np.radians(lat)
    camera = np.stack([np.cos(y) * np.cos(x), np.cos(y) * np.sin(x), np.sin(y)], axis=-1)
    seen = ~exclusion.contains(camera.reshape(-1, 3) @ track.matrices[0]).reshape(lon.shape)
    return part, lon, lat, seen & (part.exposure > 0)[:, None]


def true_counts(model, part, fov, lon, lat, seen):
    """Counts that a model expects of what was seen, point by point."""
    rate = model.integral_grid(EDGES, lon.ravel(), lat.ravel(), part.cos_zenith).reshape(-1, *lon.shape)
    return (rate * seen).mean(2) * part.ontime * fov.solid_angle


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_the_mean_position_of_what_was_seen(kind):
    fov = BINS[kind]
    part, lon, lat, seen = reduced(fov)
    positions = fov.positions(lon, lat)
    share = seen.mean(1)
    here = share > 0.15
    mean = (positions * seen[..., None]).sum(1)[here] / seen.sum(1)[here, None]
    expected = mean - positions.mean(1)[here]
    assert np.abs(part.displacement[here] - expected).max() < 0.05  # 5 x 5 points in a bin of 0.5 deg
    assert np.abs(expected).max() > 0.1
    assert np.all(part.displacement[share == 1] == 0)


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_the_forward_model_takes_what_was_seen(kind):
    fov, model = BINS[kind], AnalyticModel()
    part, lon, lat, seen = reduced(fov)
    true = true_counts(model, part, fov, lon, lat, seen).sum(0) * seen_in_full(part, seen)
    exposed = part.exposure / part.ontime
    touched = (exposed < 1) & (exposed > 0.15)
    error, as_a_whole = (
        np.abs(model.expected_counts([one], EDGES, fov).sum(0)[touched] / true[touched] - 1)
        for one in (part, replace(part, displacement=None))
    )
    assert as_a_whole.max() > 0.15
    assert error.max() < 0.25 * as_a_whole.max() and np.median(error) < 0.02


def seen_in_full(part, seen):
    """What makes the share of a bin that dense points see that of the reduction."""
    share = seen.mean(1)
    return np.divide(part.exposure, part.ontime * share, where=share > 0, out=np.zeros(len(share)))


@pytest.mark.parametrize("kind", list(BINS))
def test_a_binned_fit_takes_what_was_seen(kind):
    """Without noise; what was excluded is beyond what the bins tell, but closer to the truth."""
    fov, truth = BINS[kind], AnalyticModel()
    part, lon, lat, seen = reduced(fov)
    counts = 1e3 * true_counts(truth, part, fov, lon, lat, seen) * seen_in_full(part, seen)
    touched = (part.exposure < part.ontime) & (part.exposure > 0.15 * part.ontime)
    whole, error = true_counts(truth, part, fov, lon, lat, 1).sum(0), []
    for one in (part, replace(part, displacement=None)):
        model = fit_binned(counts, 1e3 * part.exposure, EDGES, fov, displacement=one.displacement)
        assert model.expected_counts([one], EDGES, fov).sum() == pytest.approx(counts.sum() / 1e3, rel=2e-3)
        found = true_counts(model, part, fov, lon, lat, 1).sum(0)
        error.append(np.sqrt(np.mean((found[touched] / whole[touched] - 1) ** 2)))
    assert error[0] < 0.75 * error[1]


def test_a_parametric_fit_takes_what_was_seen():
    fov, sigma = BINS["grid"], 0.7
    part, lon, lat, seen = reduced(fov)
    shape = (np.exp(-(lon**2 + lat**2) / (2 * sigma**2)) * seen).mean(1) * fov.solid_angle * seen_in_full(part, seen)
    counts = 1e5 * shape / shape.sum() * np.ones((len(EDGES) - 1, 1))
    found, as_a_whole = (
        dict(zip(result.names, result.values, strict=True))
        for result in (
            fit_parametric(counts, part.exposure, EDGES, fov, "gaussian * power_law", displacement=d).result
            for d in (part.displacement, None)
        )
    )
    name = next(name for name in found if "sigma" in name)

    assert abs(found[name] / sigma - 1) < 0.3 * abs(as_a_whole[name] / sigma - 1)
