"""Goodness of fit over field of view and energy: calibrated where counts are few, and loud where the shape is wrong."""

import logging

import numpy as np
import pytest
from scipy.stats import kstest
from stores import EDGES, expected_in_bins, fov_bins, observations, options, plain_store

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel, fit_acceptance
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.models.goodness import (
    GoodnessOfFit,
    describe_goodness,
    energy_groups,
    field_parts,
    goodness_of_fit,
    group_scores,
)
from gammapy_accmaker.simulation.store import BackgroundTruth
from gammapy_accmaker.validation.report import escape, write_report

SHARED_TRUTH = BackgroundTruth(scale=4, zenith_dependent=False)
KINDS = ["radial", "grid"]


def drawn(kind, seconds, seed=0):
    fov = fov_bins(kind)
    mu = expected_in_bins(EDGES, fov, seconds)
    return np.random.default_rng(seed).poisson(mu).astype(float), mu, fov


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [20, 300, 1e5])
def test_of_the_truth_the_p_value_is_uniform(kind, seconds):
    values = []
    for seed in range(60):
        counts, mu, fov = drawn(kind, seconds, seed)
        values.append(goodness_of_fit(counts, mu, EDGES, fov).p_value)
    assert kstest(values, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_shape_is_poor_and_its_place_is_named(kind):
    counts, mu, fov = drawn(kind, 1e4)
    theta = np.hypot(fov.fov_lon, fov.fov_lat)
    wrong = mu * np.where(theta > 1.6, 0.8, 1.0)
    fit = goodness_of_fit(counts, wrong, EDGES, fov)
    assert fit.is_poor and str(fit).startswith("poor") and "TeV, offset 1." in fit.worst
    assert 0.05 < fit.misfit < 0.2
    # one that depends on energy alone, by 2 % each way, is as wrong
    tilted = mu * np.geomspace(0.8, 1.25, len(mu))[:, None]
    assert goodness_of_fit(counts, tilted, EDGES, fov).is_poor
    good = goodness_of_fit(counts, mu, EDGES, fov)
    assert not good.is_poor and not str(good).startswith("poor")
    assert describe_goodness([good, fit, good]).startswith("1 of 3 fits is poor; the worst: poor")
    assert describe_goodness([good, good]).startswith("2 fits; the worst: deviance")


def test_a_side_that_is_too_high_is_seen_on_a_grid():
    counts, mu, fov = drawn("grid", 1e4)
    assert goodness_of_fit(counts, mu * (1 + 0.06 * np.sign(fov.fov_lon)), EDGES, fov).is_poor


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_equal_counts_and_groups_enough(kind):
    _, mu, fov = drawn(kind, 3e3)
    part, names = field_parts(fov, mu.sum(0))
    held = np.bincount(part, mu.sum(0), len(names))
    assert len(names) == (40 if kind == "grid" else 5) and held.min() > 0.2 * held.mean()
    starts = energy_groups(mu.sum(1), EDGES, len(names))
    assert starts[0] == 0 and np.add.reduceat(mu.sum(1), starts).min() >= 10 * len(names) * 0.99
    assert np.all(np.diff(np.log10(EDGES[starts])) > 0.199)
    scores = group_scores(mu, mu, EDGES, fov)
    assert len(scores) == len(starts) and np.all(scores < 0)


def test_next_to_nothing():
    fov = FovBins.rings(2.5, 12)
    none = goodness_of_fit(np.zeros((30, 12)), np.zeros((30, 12)), EDGES, fov)
    assert none.n_cells == 0 and none.p_value == 1 and not none.is_poor
    counts = np.zeros((30, 12))
    counts[4, 3] = 1
    one = goodness_of_fit(counts, counts, EDGES, fov)
    assert one.n_cells == 1 and not one.is_poor
    assert goodness_of_fit(50 * counts, 0 * counts, EDGES, fov).is_poor  # events where none can be
    again = GoodnessOfFit.from_arrays(one.to_arrays())
    assert again == one and GoodnessOfFit.from_arrays({}) is None


@pytest.mark.parametrize("kind", KINDS)
def test_binned_models_give_their_counts_back(kind, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(observations(plain_store()), options(kind))
    (fit,) = model.rate_model.goodness
    assert not fit.is_poor and fit.n_cells > 20 and "goodness" in str(model)
    assert not [r for r in caplog.records if "does not describe" in r.getMessage()]
    model.write(tmp_path / "model.fits")
    assert AcceptanceModel.read(tmp_path / "model.fits").rate_model.goodness == (fit,)


def parametric(function, **more):
    config = options("radial", "none", energy={"min": "0.3 TeV", "max": "30 TeV", "nbins_per_decade": 5}, **more)
    return config | {"model": {"type": "parametric", "function": function, "offset_bins": 6}}


@pytest.mark.parametrize("zenith", ["none", pytest.param("interpolated", marks=pytest.mark.slow)])
def test_a_parametric_shape_that_is_wrong_is_said_once(zenith, caplog, tmp_path):
    """A pure power law has no threshold and no edge of the field."""
    config = parametric("power_law * gaussian") | {
        "zenith": {"type": zenith, **({"initial_width": 0.001} if zenith != "none" else {})}
    }
    config["energy"] = config["energy"] | {"min": "0.1 TeV"}
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(observations(plain_store()), config)
    assert len([r for r in caplog.records if "does not describe the counts" in r.getMessage()]) == 1
    fits = model.rate_model.goodness
    assert any(fit.is_poor for fit in fits) and "goodness    : " in str(model) and "poor" in str(model)
    if zenith == "none":
        assert fits == (model.rate_model.result.goodness,)
    model.write(tmp_path / "model.fits")
    assert AcceptanceModel.read(tmp_path / "model.fits").rate_model.goodness == fits


def truth(energy, fov_lon, fov_lat, scale=1.0, index=0.0):
    """The simulated rate, with a norm and a tilt."""
    return scale * energy**index * SHARED_TRUTH.rate(energy, fov_lon, fov_lat)


def test_a_parametric_shape_that_is_right_is_not_called_poor(caplog):
    with caplog.at_level(logging.WARNING):
        model = fit_acceptance(observations(plain_store()), parametric(truth))
    assert not model.rate_model.result.goodness.is_poor
    assert not [r for r in caplog.records if "does not describe" in r.getMessage()]


def test_the_run_table_flags_a_model_that_is_poor_and_runs_that_it_does_not_describe():
    config = parametric("power_law * gaussian")
    table = fit_acceptance(observations(plain_store()), config).run_table
    assert all("poor fit of the model" in flag for flag in table["FLAG"])
    assert np.median(table["DEVIANCE"]) > 2
    right = fit_acceptance(observations(plain_store()), parametric(truth)).run_table
    assert not any("poor" in flag for flag in right["FLAG"])
    assert np.abs(right["DEVIANCE"]).max() < 4.5


def test_the_report_says_how_well_the_model_describes_the_counts(tmp_path, empty_pictures):
    runs = observations(plain_store())[:4]
    for function, poor in (("power_law * gaussian", True), (truth, False)):
        maker = AcceptanceBackgroundMaker(parametric(function)).fit(runs)
        write_report(maker, runs[:1], tmp_path / "report.html", overwrite=True)
        text = (tmp_path / "report.html").read_text()
        said = f"Goodness of fit: {describe_goodness(maker.model.rate_model.goodness)}."
        assert f'<p class="warn">{escape(said)}</p>' in text if poor else f"<p>{escape(said)}</p>" in text
    assert "poor fit" in RUN_COLUMNS["FLAG"].description
