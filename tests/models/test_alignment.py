"""Runs of different thresholds in one binned model: pooled and interpolated at scaled energies, adapted by a shift."""

import logging

import numpy as np
import pytest
from scipy.sparse import csr_array

from gammapy_accmaker import AcceptanceConfig
from gammapy_accmaker.acceptance.fit import COUNTS_OFF, fit_runs, make_run_table
from gammapy_accmaker.camera.bins import CountsBins, FovBins
from gammapy_accmaker.data.reduced_run import ReducedRun, RunSlice
from gammapy_accmaker.models.alignment import AlignedRuns, find_zenith_scaling, fit_shift
from gammapy_accmaker.models.base import MODEL_KINDS
from gammapy_accmaker.models.spectrum import fit_spectrum
from gammapy_accmaker.utils.run_key import RunKey

POWER, RATE_POWER = 2.5, 1.5  # of cos zenith: of the threshold, and of the rate at a scaled energy
FINE = 10  # bins of the truth in one of the fit
SECONDS = 1700.0
EDGES = np.geomspace(0.1, 100, 31)
LOG_EDGES = np.log(EDGES)
RINGS, GRID = FovBins.rings(2.4, 8), FovBins.grid(2.4, 12)
COS_ZENITH = np.cos(np.radians([4, 12, 18, 25, 33, 41, 48, 55]))


def true_counts(edges, fov, cos_zenith, shift, norm):
    """A power law above a threshold of 0.2 TeV at zenith, in bins; the field is narrower near the threshold."""
    fine = np.exp(np.interp(np.arange(FINE * (len(edges) - 1) + 1) / FINE, np.arange(len(edges)), np.log(edges)))
    energy = np.sqrt(fine[1:] * fine[:-1])
    log_scaled = np.log(energy) + POWER * np.log(cos_zenith) + shift
    log_rate = -1.7 * log_scaled - np.logaddexp(0, -(log_scaled - np.log(0.2)) / 0.08)
    width = 1.0 + 0.1 * np.clip(log_scaled - np.log(0.2), -1, 4)
    lon, lat = fov.subpoints(4)
    field = np.exp(-(lon**2 + lat**2)[None] / (2 * width[:, None, None] ** 2)).mean(2)
    mu = np.exp(log_rate)[:, None] * field * fov.solid_angle * np.log(fine[1:] / fine[:-1])[:, None]
    factor = 160 * SECONDS * np.exp(norm) * cos_zenith**RATE_POWER
    return factor * mu.reshape(len(edges) - 1, FINE, -1).sum(1)


def simulate(cos_zenith=COS_ZENITH, *, sd_shift=0.1, sd_norm=0.15, fov=RINGS, edges=EDGES, seed=1, seconds=SECONDS):
    """Runs, and their true counts."""
    rng, runs, truth = np.random.default_rng(seed), [], []
    for k, z in enumerate(cos_zenith):
        mu = true_counts(edges, fov, z, sd_shift * rng.normal(), sd_norm * rng.normal()) * seconds / SECONDS
        key = RunKey(k + 1, 59000.0 + k, (83.6, 22.0))
        part = RunSlice(
            key, csr_array(rng.poisson(mu).astype(float)), np.full(fov.size, seconds), seconds, seconds, float(z), 10.0,
            (float(z), float(z)), 59000.0 + k, (83.6, 22.0),
        )  # fmt: skip
        runs.append(ReducedRun(key, (part,), dropped={"not finite": 0, "outside GTI": 0}, place=k))
        truth.append(mu)
    return runs, truth


def config_of(kind="radial", **more):
    model = {"type": kind} | ({"function": "gaussian"} if kind == "parametric" else {})
    return AcceptanceConfig.coerce({"model": model, **more})


def fit_and_adapt(runs, bins, config, fitted=None):
    model = fit_runs(runs if fitted is None else fitted, bins, config)[0]
    return model, [model.adapt(run, bins, config.run_effects.settings) for run in runs]


def in_bands(values, edges=EDGES):
    """Sums over the field: of all energies, below 0.5 TeV and above."""
    low = edges[1:] < 0.51
    by_energy = values.sum(1)
    return np.array([by_energy.sum(), by_energy[low].sum(), by_energy[~low].sum()])


@pytest.mark.parametrize(("kind", "fov"), [("radial", RINGS), ("grid", GRID), ("parametric", GRID)])
def test_few_runs_over_wide_zenith_angles_are_as_the_truth(kind, fov):
    """Pooled at one energy scale, runs of several thresholds are off by tens of per cent below the slowest of them."""
    runs, truth = simulate(fov=fov)
    bins = CountsBins(EDGES, fov, "altaz")
    model, adapted = fit_and_adapt(runs, bins, config_of(kind))
    assert model.scaling.energy == pytest.approx(POWER, abs=0.6)
    for run, one, mu in zip(runs, adapted, truth, strict=True):
        expected = in_bands(one.model.expected_counts(run.slices, EDGES, fov))
        true = in_bands(mu)
        assert np.all(np.abs(expected - true) < np.maximum(0.05 * true, 3 * np.sqrt(true)))
        assert not {"poor fit", COUNTS_OFF} & set(one.flags)


def test_a_norm_alone_follows_the_zenith_angle_above_the_thresholds():
    runs, truth = simulate(sd_shift=0.0)
    _, adapted = fit_and_adapt(runs, CountsBins(EDGES, RINGS, "altaz"), config_of(run_effects={"type": "norm"}))
    for run, one, mu in zip(runs, adapted, truth, strict=True):
        expected, true = in_bands(one.model.expected_counts(run.slices, EDGES, RINGS)), in_bands(mu)
        assert np.all(np.abs(expected - true) < np.maximum(0.07 * true, 3 * np.sqrt(true)))


def test_a_run_that_the_fit_has_not_seen_is_followed():
    runs, truth = simulate(np.tile(COS_ZENITH, 2), seed=4)
    held = [1, 6, 11]  # inside of the trained range
    model, adapted = fit_and_adapt(
        [runs[k] for k in held],
        CountsBins(EDGES, RINGS, "altaz"),
        config_of(),
        fitted=[run for k, run in enumerate(runs) if k not in held],
    )
    for k, one in zip(held, adapted, strict=True):
        expected = in_bands(one.model.expected_counts(runs[k].slices, EDGES, RINGS))
        true = in_bands(truth[k])
        assert np.all(np.abs(expected - true) < np.maximum(0.05 * true, 3 * np.sqrt(true)))


def test_shifts_and_norms_have_their_errors():
    """Of many runs at one zenith angle: the shifts are found, up to their mean, with pulls of width 1."""
    rng = np.random.default_rng(5)
    true = 0.1 * rng.normal(size=30)
    parts = [simulate([0.9], sd_shift=0, sd_norm=0, seed=10 + k, seconds=400) for k in range(30)]
    runs = [run for (run,), _ in parts]
    shifted = []
    for k, (run, s) in enumerate(zip(runs, true, strict=True)):
        mu = true_counts(EDGES, RINGS, 0.9, s, 0.0) * 400 / SECONDS
        key = RunKey(k + 1, 59000.0 + k, (83.6, 22.0))
        part = RunSlice(
            key, csr_array(rng.poisson(mu).astype(float)), run.slices[0].exposure, 400, 400, 0.9, 10.0, (0.9, 0.9),
            59000.0 + k, (83.6, 22.0),
        )  # fmt: skip
        shifted.append(ReducedRun(key, (part,), dropped={"not finite": 0, "outside GTI": 0}, place=k))
    _, adapted = fit_and_adapt(shifted, CountsBins(EDGES, RINGS, "altaz"), config_of())
    found, errors = np.array([(one.shift, one.shift_error) for one in adapted]).T
    pulls = (found - true - (found - true).mean()) / errors
    assert 0.7 < np.std(pulls) < 1.35 and np.corrcoef(found, true)[0, 1] > 0.95
    norms = np.array([one.norm for one in adapted])
    pulls = (norms / norms.mean() - 1) / np.array([one.norm_error for one in adapted])
    assert 0.6 < np.std(pulls) < 1.4


def test_energies_above_all_thresholds_have_no_scale():
    """A power law alone shows no shift; and at the ends of its energies there is no hole."""
    edges = np.geomspace(2, 50, 15)
    runs, truth = simulate(edges=edges, sd_shift=0.0)
    bins = CountsBins(edges, RINGS, "altaz")
    config = config_of(energy={"min": "2 TeV", "max": "50 TeV"})
    model, adapted = fit_and_adapt(runs, bins, config)
    for run, one, mu in zip(runs, adapted, truth, strict=True):
        expected = one.model.expected_counts(run.slices, edges, RINGS)
        first, rest = ([values[0].sum(), values[1:].sum()] for values in (expected, mu))
        assert expected[0].sum() > 0
        assert np.all(np.abs(np.array(first) / rest - 1) < 0.2)


def test_the_scaling_is_that_of_the_runs():
    runs, _ = simulate(np.linspace(0.5, 1, 40), sd_shift=0.05, seed=3)
    spectra = np.array([run.counts.sum(1) for run in runs])
    x = np.log([run.cos_zenith for run in runs])
    scaling = find_zenith_scaling(spectra, np.full(40, 1.0), LOG_EDGES, x)
    assert scaling.energy == pytest.approx(POWER, abs=0.2) and scaling.rate == pytest.approx(RATE_POWER, abs=0.4)
    assert find_zenith_scaling(spectra[:1], np.ones(1), LOG_EDGES, x[:1]).energy == 0  # one run tells nothing
    assert find_zenith_scaling(0 * spectra, np.ones(40), LOG_EDGES, x).energy == 0


def test_shifted_bins_are_put_between_each_other():
    """Of runs with shifts, the threshold is found as sharp as it is; added up, it is as wide as their shifts."""
    shift = np.linspace(-0.3, 0.3, 7)
    mu = np.array([true_counts(EDGES, RINGS, 1.0, s, 0.0) for s in shift])
    spectra = mu.sum(2)
    aligned = AlignedRuns(mu, shift, np.full(7, 1 / 7))
    spectrum, mixed = aligned.fit_spectrum(EDGES, slice(0, 30))
    added = fit_spectrum(spectra.sum(0), EDGES)
    truth = 7 * true_counts(EDGES, RINGS, 1.0, 0.0, 0.0).sum(1)
    got, of_sum, of_mix = (one.bin_weights(EDGES, np.ones(1))[:, 0] for one in (spectrum, added, mixed))
    near = slice(1, 8)
    assert np.abs(got[near] / truth[near] - 1).max() < 0.1 < 0.5 < np.abs(of_sum[near] / truth[near] - 1).max()
    assert np.allclose(of_mix, spectra.sum(0), rtol=0.02, atol=5)
    moved = aligned.moved(lambda e: spectrum.bin_weights(e, np.ones(1)), EDGES).sum(1)
    assert moved.sum() == pytest.approx(spectra.sum(), rel=1e-3)
    assert np.abs(moved[near] / truth[near] - 1).max() < 0.1


def test_a_spectrum_goes_on_as_a_power_law():
    spectrum = fit_spectrum(true_counts(EDGES, RINGS, 1.0, 0.0, 0.0).sum(1)[12:20], EDGES[12:21])
    low, high = EDGES[[12, 20]]
    inside = np.array([1.01 * low, 0.99 * high])
    assert np.array_equal(spectrum(np.array([0.9 * low, 1.1 * high])), [0, 0])
    wide = spectrum.shifted(0.0, (0.5 * low, 2 * high))
    assert np.allclose(wide(inside), spectrum(inside), rtol=1e-12)
    index = np.log(wide(np.array([0.6, 0.9]) * low) * np.array([0.6, 0.9]) * low) @ [-1, 1] / np.log(1.5)
    assert index == pytest.approx(-1.7, abs=0.15)
    moved = spectrum.shifted(0.2, (low, high))
    assert np.allclose(moved(inside[:1]), spectrum(inside[:1] * np.exp(0.2)) * np.exp(0.2), rtol=1e-12)


@pytest.mark.parametrize("kind", ["radial", "grid", "parametric"])
def test_a_shifted_model_is_the_model_at_other_energies(kind):
    fov = RINGS if kind == "radial" else GRID
    runs, _ = simulate(fov=fov)
    model = fit_runs(runs, CountsBins(EDGES, fov, "altaz"), config_of(kind))[0]
    reach, x = (0.1, 100.0), np.linspace(-2, 2, 5)
    shifted, edges = model.shifted(0.2, reach), np.geomspace(0.4, 8, 6)
    for z in (0.57, 0.8, 0.99):
        here, there = shifted.integral_grid(edges, x, 0 * x, z), model.integral_grid(edges * np.exp(0.2), x, 0 * x, z)
        assert np.allclose(here, there, rtol=2e-3)
        rates = shifted.rate_grid(edges, x, 0 * x, z), model.rate_grid(edges * np.exp(0.2), x, 0 * x, z)
        assert np.allclose(rates[0], np.exp(0.2) * rates[1], rtol=1e-9)
    # and the file has what the fit found
    again = MODEL_KINDS[model.kind].from_arrays(model.to_arrays())
    assert again.scaling == model.scaling
    assert np.array_equal(again.integral_grid(edges, x, x, 0.7), model.integral_grid(edges, x, x, 0.7))


def test_one_event_does_not_decide_a_shift():
    mu = true_counts(EDGES, RINGS, 1.0, 0.0, 0.0).sum(1)
    counts = np.zeros(30)
    shift, error, _ = fit_shift(counts, lambda s: mu, 0.1)
    assert abs(shift) < 1e-3 and error == pytest.approx(0.1)
    counts[2] = 1  # far below the threshold
    shift, error, _ = fit_shift(counts, lambda s: true_counts(EDGES, RINGS, 1.0, s, 0.0).sum(1), 0.1)
    assert 0 < shift < 0.3 and 0.03 < error <= 0.1


def test_runs_whose_counts_are_off_are_flagged_once(caplog):
    """With a norm, runs of other thresholds: below NORM_EMIN they are off, and the table says so."""
    runs, _ = simulate(np.full(6, 0.9), sd_shift=0.25, seed=2)
    bins = CountsBins(EDGES, RINGS, "altaz")
    for effects, wanted in (("norm", True), ("shift", False)):
        config, caplog_records = config_of(run_effects={"type": effects}), []
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            model, adapted = fit_and_adapt(runs, bins, config)
            table = make_run_table(model, runs, adapted, {}, config)
            caplog_records = [r.getMessage() for r in caplog.records if "standard deviations off" in r.getMessage()]
        off = np.abs(table["COUNTS"] - table["EXPECTED"])
        far = (off > 0.1 * table["EXPECTED"]) & (off > 5 * np.sqrt(table["EXPECTED"]))
        assert [COUNTS_OFF in flag for flag in table["FLAG"]] == far.tolist()
        assert far.any() == wanted and len(caplog_records) == wanted
        for message in caplog_records:
            assert f"{far.sum()} of 6 runs" in message and "run_effects 'shift'" in message


@pytest.mark.parametrize("effects", ["norm", "shift"])
def test_a_run_without_counts_is_as_the_others_and_flagged(effects):
    runs, _ = simulate(np.full(4, 0.9))
    empty = simulate([0.9], seconds=1e-9)[0]
    bins, config = CountsBins(EDGES, RINGS, "altaz"), config_of(run_effects={"type": effects})
    _, (one,) = fit_and_adapt(empty, bins, config, fitted=runs)
    assert one.norm == 1 and abs(one.shift) < 1e-3 and "no counts for the norm" in one.flags
    assert 0.1 < one.norm_error < 0.4 and (one.shift_error > 0.03) == (effects == "shift")
