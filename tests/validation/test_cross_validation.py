"""Held-out scores: their definition, and what they show on simulated runs."""

import importlib.util
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from scipy.sparse import csr_array
from stores import simulated

from gammapy_accmaker import cross_validate
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.products.sky_stack import disc_sums
from gammapy_accmaker.simulation.store import BackgroundTruth
from gammapy_accmaker.utils.statistics import free_norm_log_likelihood
from gammapy_accmaker.validation.cross_validation import _split
from gammapy_accmaker.validation.stacks import disc_significance

PROTOTYPE = Path(__file__).parents[3] / "shared" / "prototype" / "heldout_score.py"


@pytest.fixture(scope="module")
def observations():
    truth = BackgroundTruth(scale=6, zenith_dependent=False)
    store = simulated(
        "cross", n_wobble=0, n_off=6, source=False, gap=False, shift_scatter=0.0, ontime=10 * u.min, truth=truth
    )
    return store.data_store.get_observations(required_irf=[])


def test_score_is_a_multinomial_log_likelihood():
    rng = np.random.default_rng(1)
    mu = rng.uniform(1, 3, (3, 4))
    counts = rng.poisson(mu)
    expected = sum(n * np.log(m / mu.sum()) for n, m in zip(counts.ravel(), mu.ravel(), strict=True))
    assert free_norm_log_likelihood(counts, mu) == pytest.approx(expected, rel=1e-12)
    # a free norm
    assert free_norm_log_likelihood(counts, 7 * mu) == pytest.approx(expected, rel=1e-12)


@pytest.mark.skipif(
    not PROTOTYPE.is_file(),
    reason="the script that defines the score lies beside the project only where it is developed",
)
def test_score_equals_the_script_that_defines_it():
    spec = importlib.util.spec_from_file_location("heldout_score", PROTOTYPE)
    prototype = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prototype)
    rng = np.random.default_rng(2)
    mu = np.exp(rng.normal(0, 4, (24, 500))) * (rng.random(500) > 0.1)
    counts = rng.poisson(np.minimum(mu, 50)).astype(float)
    assert free_norm_log_likelihood(counts, mu) == pytest.approx(prototype.score(counts, mu), rel=1e-6)


def test_halves_hold_each_event_once(observations):
    observation = observations[0]
    first, second = _split(observation, np.random.default_rng(0))
    ids = [set(part.events.table["EVENT_ID"]) for part in (first, second)]
    assert ids[0].isdisjoint(ids[1])
    assert ids[0] | ids[1] == set(observation.events.table["EVENT_ID"])
    assert abs(len(ids[0]) - len(ids[1])) < 5 * np.sqrt(len(observation.events.table))


@pytest.mark.slow
def test_a_model_with_the_asymmetry_predicts_better_than_one_without(observations):
    common = {"energy": {"min": "0.15 TeV", "max": "30 TeV", "nbins_per_decade": 6}, "run_effects": {"type": "norm"}}
    configs = {
        "one ring": {"model": {"type": "radial", "offset_bins": 1}, **common},
        "radial": {"model": {"type": "radial"}, **common},
        "grid": {"model": {"type": "grid", "offset_bins": 8}, **common},
    }
    result = cross_validate(observations, configs, n_folds=3, sky=True)
    score = dict(zip(result.table["CONFIG"], result.table["SCORE"], strict=True))
    assert score["grid"] > score["radial"] + 20
    assert score["radial"] > score["one ring"] + 1000
    assert result.table["GAIN"][0] == 0
    assert "\n" not in repr(result) and len(repr(result)) < 120 and "radial, grid; 6 runs in 3 folds" in repr(result)
    assert f"{result.table['GAIN'][1]:+.0f}" in str(result) and "grid" in result._repr_html_()
    assert result.table["SCORE"][1] == pytest.approx(result.scores["radial"].sum())
    # the norms of the runs scatter by 5 % in the truth
    assert 0.01 < result.table["LOG_NORM_STD"][1] < 0.12
    for frame in ("camera", "sky"):
        bands = result.significance[(result.significance["CONFIG"] == "grid") & (result.significance["FRAME"] == frame)]
        assert len(bands) == 6
        assert np.all(np.abs(bands["MEAN"]) < 0.5)
        assert np.all((bands["WIDTH"] > 0.8) & (bands["WIDTH"] < 1.4))


def test_folds_need_runs(observations):
    with pytest.raises(InputError, match="n_folds: got 7 for 6"):
        cross_validate(observations, {"radial": {"model": {"type": "radial"}}}, n_folds=7)


def test_the_score_ends_where_the_smallest_model_does(observations, caplog):
    narrow, wide = {"model": {"type": "radial"}, "offset_max": "1.5 deg"}, {"model": {"type": "radial"}}
    some = list(observations)[:4]
    clipped = cross_validate(some, {"wide": wide, "narrow": narrow}, n_folds=2)
    assert caplog.text.count("'narrow' ends at 1.5 deg") == 1 and np.all(np.isfinite(clipped.table["SCORE"]))
    caplog.clear()
    asked = cross_validate(some, {"wide": wide, "narrow": narrow}, n_folds=2, offset_max=1.5 * u.deg)
    assert "offset_max" not in caplog.text
    assert np.array_equal(asked.table["SCORE"], clipped.table["SCORE"])
    assert asked.table["GAIN"][1] == pytest.approx(0, abs=30)  # the same rate but for the ends of the rings


def test_bands_beyond_the_energies_of_a_model_have_no_significance(observations):
    config = {"model": {"type": "radial"}, "energy": {"min": "1 TeV", "max": "10 TeV"}}
    found = cross_validate(list(observations)[:4], {"a": config}, n_folds=2).significance
    assert np.array_equal(np.isfinite(found["WIDTH"]), np.array(found["E_MIN"]) > 0.99)


@pytest.mark.parametrize("radius", [0.05, 0.1, 0.25, 0.5, 2.0])
def test_disc_sums_equal_plain_sums(radius):
    image = np.random.default_rng(3).random((2, 12, 9))
    sums = disc_sums(image, radius)
    x, y = np.indices((12, 9))
    for i, j in np.ndindex(12, 9):
        near = np.hypot(x - i, y - j) * 0.1 <= radius + 1e-9
        np.testing.assert_allclose(sums[:, i, j], image[:, near].sum(1), rtol=1e-12)
    whole = np.round(image * 100)
    assert np.array_equal(disc_sums(whole, radius), np.round(disc_sums(whole, radius)))  # counts are exact


@pytest.mark.parametrize("level", [0.02, 0.3, 20.0])
def test_significance_of_a_true_model_is_standard_normal_at_any_counts(level):
    fov = FovBins.grid(2.3, 46)
    inside = np.hypot(fov.fov_lon, fov.fov_lat) < 2.1
    rng = np.random.default_rng(4)
    means, widths = [], []
    for seed in range(8):
        counts = csr_array(rng.poisson(np.full((1, fov.size), level))).toarray()
        ((values, total),) = disc_significance(counts, np.full((1, fov.size), level), fov.shape, inside, seed=seed)
        assert total == counts.sum()
        means.append(values.mean())
        widths.append(values.std())
    assert np.mean(means) == pytest.approx(0, abs=0.06)
    assert np.mean(widths) == pytest.approx(1, abs=0.05)
