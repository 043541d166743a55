"""What is filled is what was fitted: the counts that a fit expects of a run are those of its map, and the map those of its IRF."""

import itertools

import astropy.units as u
import numpy as np
import pytest
from forward_runs import exclusion_circle, runs_with_spread
from gammapy.makers.utils import make_map_background_irf
from gammapy.maps import MapAxis, WcsGeom

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.binning import offset
from gammapy_accmaker.runs import make_bins, reduce_one

ENERGY = {"min": "0.2 TeV", "max": "20 TeV"}
OFFSET_MAX = 2.0
MODELS = {
    "spline": {"model": {"type": "spline"}},
    "radial": {"model": {"type": "radial", "offset_bins": 8}},
    "grid": {"model": {"type": "grid", "offset_bins": 6}},
    "parametric": {"model": {"type": "parametric", "function": "gaussian * power_law"}},
}
CASES = {
    "kind": list(MODELS),
    "effects": ["none", "norm", "tilt", "shift"],
    "number": [1, 2, 4, 20],
    "spread": [0.0, 0.001, 0.015, 0.03, 0.3],
    "time_step": [None, "1 min"],
    "alignment": ["altaz", "radec"],
}
FAST = [
    ("spline", "shift", 2, 0.001, "1 min", "altaz"),
    ("spline", "norm", 1, 0.0, None, "altaz"),
    ("radial", "norm", 2, 0.03, None, "altaz"),
    ("grid", "norm", 2, 0.3, "1 min", "radec"),
]


def pairwise():
    """Few cases in which each two levels of two factors meet, for which there is a case at all."""
    possible = [
        case
        for case in itertools.product(*CASES.values())
        if (case[0] == "spline" or case[1] in ("none", "norm")) and (case[2] > 1 or case[3] == 0)
    ]
    pairs = [set(itertools.combinations(enumerate(case), 2)) for case in possible]
    left, chosen = set().union(*pairs), []
    while left:
        k = max(range(len(possible)), key=lambda k: len(pairs[k] & left))
        chosen.append(possible[k])
        left -= pairs[k]
    return chosen


def geom_around(observation, nbin, binsz):
    axis = MapAxis.from_energy_bounds(ENERGY["min"], ENERGY["max"], nbin)
    npix = 2 * int(np.ceil(1.02 * OFFSET_MAX / binsz))
    return WcsGeom.create(skydir=observation.pointing.fixed_icrs, npix=npix, binsz=binsz, proj="TAN", axes=[axis])


def share_within(maker, observation, radius):
    """Part of the counts that a model expects of a run which lies within a radius, cells by the part inside."""
    bins = make_bins(maker.config)
    slices, model = reduce_one(observation, bins, maker.config, maker.exclusion), maker.adapt(observation)
    lon, lat = bins.fov.subpoints(8)
    counts = np.zeros(lon.shape)
    for part in slices:
        here = model.at_azimuth(part.azimuth)
        for k in np.flatnonzero(part.exposure > 0):
            rate = here.integral_grid(bins.energy_edges[[0, -1]], lon[k], lat[k], part.cos_zenith)[0]
            counts[k] += rate * part.exposure[k] * bins.fov.solid_angle[k] / lon.shape[1]
    return (counts * (offset(lon, lat) < radius)).sum() / counts.sum()


def check_case(kind, effects, number, spread, time_step, alignment):
    config = {
        **MODELS[kind],
        "energy": ENERGY,
        "offset_max": f"{OFFSET_MAX} deg",
        "time_step": time_step,
        "fov_alignment": alignment,
        "run_effects": {"type": effects},
    }
    runs, circle = runs_with_spread(number, spread), exclusion_circle()
    maker = AcceptanceBackgroundMaker(config, exclusion=circle).fit(runs, n_jobs=1)
    # the pixels of the spline are those whose centre lies within the largest offset
    radius = OFFSET_MAX - 0.1 if kind == "spline" else OFFSET_MAX
    for k in sorted({0, number - 1}):
        run = runs[k]
        geom = geom_around(run, 1, 0.02)
        image = geom.to_image()
        kept = (image.separation(run.pointing.fixed_icrs).deg < radius) & ~image.region_mask([circle]).data
        filled = maker.make_background(geom, run).data[0, kept].sum()
        expected = maker.run_table["EXPECTED"][k] * share_within(maker, run, radius)
        assert filled == pytest.approx(expected, rel=2e-3)
        check_irf(maker, run, None if kind != "spline" else 2)


def check_irf(maker, run, oversampling):
    """20 bins a decade; the threshold of the spline is sharper than this."""
    geom = geom_around(run, 40, 0.1)
    near = geom.to_image().separation(run.pointing.fixed_icrs).deg < OFFSET_MAX - 0.1
    filled = maker.make_background(geom, run).data[:, near].sum(1)
    read = (
        make_map_background_irf(
            run.pointing,
            run.gti.time_sum,
            maker.make_irf(run),
            geom,
            run.tstart,
            location=run.observatory_earth_location,
            fov_rotation_step=2 * u.deg,
            oversampling=oversampling,
        )
        .data[:, near]
        .sum(1)
    )
    assert read.sum() == pytest.approx(filled.sum(), rel=3e-3)
    some = filled > 30  # the spectrum of fewer has bends that no grid of energies follows
    assert np.allclose(read[some], filled[some], rtol=5e-3)


@pytest.mark.parametrize("case", FAST, ids=str)
def test_a_map_is_what_was_fitted_and_an_irf_is_the_map(case):
    check_case(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", pairwise(), ids=str)
def test_every_model_with_every_kind_of_runs(case):
    check_case(*case)
