"""Serial form of the spline model of many runs: small, exact, and not believed where it does not fit."""

from dataclasses import replace

import numpy as np
import pytest
from simulated_runs import EDGES, LAT, LON, SOLID_ANGLE, simulate_runs

from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.model import SplineModel

FLAGS = [(), ("few counts",), ("few counts", 'a "quoted" one\nof two lines')]


@pytest.fixture(scope="module")
def model():
    return fit_spline(simulate_runs(4, seed=1), EDGES, LON, LAT, SOLID_ANGLE, max_rounds=4)[0]


def with_effects(model, n):
    effects = [replace(model.effects[k % 4], obs_id=k, flags=FLAGS[k % 3]) for k in range(n)]
    return replace(model, effects=tuple(effects))


@pytest.mark.parametrize("n", [0, 1, 2, 30])
def test_it_is_exact(model, n):
    before = with_effects(model, n)
    after = SplineModel.from_arrays(before.to_arrays())
    assert len(after.effects) == n and after.population.basis == before.population.basis
    for one, other in zip(before.effects, after.effects, strict=True):
        assert one.obs_id == other.obs_id and one.flags == other.flags and one.basis == other.basis
        for name in ("coefficients", "covariance", "covariance_of_rate", "counts", "deviance", "norm_row"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.norm == other.norm and one.converged is other.converged


def test_effects_whose_arrays_differ_in_shape(model):
    some = with_effects(model, 3)
    effects = (replace(some.effects[0], response=np.ones((5, some.effects[0].basis.n))), *some.effects[1:])
    after = SplineModel.from_arrays(replace(some, effects=effects).to_arrays())
    assert [e.response.shape[0] for e in after.effects] == [5, 0, 0]


def test_the_number_of_arrays_does_not_grow_with_the_runs(model):
    few, many = (with_effects(model, n).to_arrays() for n in (5, 50))
    assert few.keys() == many.keys()


@pytest.mark.parametrize("number", [3, 5, 10**15])
def test_a_wrong_number_of_runs_is_refused(model, number):
    arrays = with_effects(model, 4).to_arrays()
    arrays["effects"] = np.array(f"nodes RunEffect {number}")
    with pytest.raises(ValueError, match=f"not those of {number} parts"):
        SplineModel.from_arrays(arrays)
    with pytest.raises(ValueError, match="not those of|is missing"):
        SplineModel.from_arrays({k: v for k, v in arrays.items() if "*" not in k})
