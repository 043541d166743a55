from functools import reduce

import numpy as np
import pytest
from scipy.interpolate import BSpline

from gammapy_accmaker.models.bsplines import (
    BSplineAxis,
    axis_penalties,
    contract,
    difference_penalty,
    fit_tensor_spline,
    row_tensor,
    tensor_information,
)
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis


@pytest.mark.parametrize("n", [4, 5, 12])
def test_basis_and_derivative_equal_scipy(n):
    axis = BSplineAxis(-0.3, 1.7, n)
    x = np.linspace(-0.3, 1.7, 301)[:-1]
    knots = axis.lo + axis.step * np.arange(-3, n + 1)
    splines = [BSpline(knots, row, 3) for row in np.eye(n)]
    assert np.allclose(axis.basis(x), np.array([s(x) for s in splines]).T, atol=1e-13)
    assert np.allclose(axis.derivative(x), np.array([s.derivative()(x) for s in splines]).T, atol=1e-12)


def test_basis_sums_to_one_reproduces_lines_and_clamps():
    axis = BSplineAxis(0.0, 2.0, 9)
    x = np.linspace(-1, 3, 50)
    assert np.allclose(axis.basis(x).sum(1), 1)
    assert np.allclose(axis.basis(x) @ axis.centers, np.clip(x, 0, 2))
    assert np.allclose(axis.derivative([-1.0, 3.0]), 0)
    assert np.array_equal(BSplineAxis(0, 1, 1).basis(x), np.ones((50, 1)))
    assert np.array_equal(BSplineAxis(2, 5, 1).centers, [3.5])
    with pytest.raises(ValueError, match="n >= 4"):
        BSplineAxis(0, 1, 3)


def test_warped_axis_derivative_and_dense_knots():
    axis = ScaledEnergyAxis(-2.0, 3.0, -1.0, 0.0)
    u = np.linspace(-1.99, 2.99, 400)
    numeric = (axis.basis(u + 1e-6) - axis.basis(u - 1e-6)) / 2e-6
    assert np.allclose(axis.derivative(u), numeric, atol=1e-5)
    # clamped beyond the ends, so nothing changes there
    assert np.array_equal(axis.derivative([-2.5, 3.5]), np.zeros((2, axis.n)))
    assert np.all(np.abs(axis.derivative([-2.0, 3.0])).max(1) > 0.1)
    dense = ((axis.centers > -1) & (axis.centers < 0)).sum()
    assert dense > 7 > ((axis.centers > 1) & (axis.centers < 2)).sum()
    node, fraction = axis.locate(np.array([-10.0, 0.3, 10.0]))
    assert np.all((fraction >= 0) & (fraction <= 1))
    assert node.max() < len(axis.grid) - 1


@pytest.mark.parametrize("shape", [(7,), (7, 6), (7, 6, 5)])
def test_array_arithmetic_equals_dense_reference(shape):
    rng = np.random.default_rng(len(shape))
    bases = [BSplineAxis(0, 1, k).basis(rng.random(m)) for m, k in zip(shape, (5, 4, 4)[: len(shape)], strict=True)]
    weights, values = rng.gamma(1.0, 1.0, shape), rng.normal(size=shape)
    dense = reduce(np.kron, bases)
    information = tensor_information(weights, [row_tensor(b) for b in bases])
    reference = dense.T @ (weights.ravel()[:, None] * dense)
    assert np.allclose(information, reference, rtol=0, atol=1e-10)
    assert np.allclose(contract(values, bases).ravel(), dense.T @ values.ravel(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_fit_solves_the_dense_penalised_likelihood(dim):
    rng = np.random.default_rng(10 + dim)
    shape, k = (15, 9, 7)[:dim], (6, 5, 4)[:dim]
    bases = [BSplineAxis(0, 1, n).basis(np.linspace(0, 1, m)) for m, n in zip(shape, k, strict=True)]
    penalties = [difference_penalty(n) for n in k]
    offset = rng.gamma(5.0, 2.0, shape)
    counts = rng.poisson(offset * 2).astype(float)
    smoothing = np.array([0.7, 2.0, 5.0])[:dim]
    fit = fit_tensor_spline(
        counts, offset, bases, penalties, smoothing=smoothing, estimate_smoothing=False, tolerance=1e-10
    )
    dense = reduce(np.kron, bases)
    c = fit.coefficients.ravel()
    penalty = sum(s * p for s, p in zip(smoothing, axis_penalties(penalties), strict=True)) + 1e-6 * np.eye(len(c))
    mu = offset.ravel() * np.exp(dense @ c)
    assert fit.converged
    assert np.abs(dense.T @ (counts.ravel() - mu) - penalty @ c).max() < 1e-8
    covariance = np.linalg.inv(dense.T @ (mu[:, None] * dense) + penalty)
    assert np.allclose(fit.covariance, covariance, rtol=1e-6, atol=1e-10)


def test_infinite_smoothing_is_a_power_law_and_one_bin_its_ratio():
    x = np.linspace(0, 3, 40)
    basis, penalty = BSplineAxis(0, 3, 10).basis(x), difference_penalty(10)
    offset = np.full(40, 50.0)
    counts = offset * np.exp(0.4 - 1.3 * x)
    fit = fit_tensor_spline(counts, offset, [basis], [penalty], smoothing=[1e7], estimate_smoothing=False, ridge=1e-9)
    assert np.allclose(basis @ fit.coefficients, 0.4 - 1.3 * x, atol=1e-5)
    one = fit_tensor_spline(
        np.array([42.0]), np.array([6.0]), [np.ones((1, 1))], [np.zeros((1, 1))], estimate_smoothing=False, ridge=0.0
    )
    assert np.exp(one.coefficients[0]) == pytest.approx(7.0)
    assert one.covariance[0, 0] == pytest.approx(1 / 42)


def test_the_tolerance_is_that_of_the_coefficients():
    x = np.linspace(0, 1, 60)
    basis, penalty = BSplineAxis(0, 1, 8).basis(x), difference_penalty(8)
    counts = np.random.default_rng(2).poisson(np.exp(2 + 1.5 * np.sin(6 * x))).astype(float)
    loose, tight = (
        fit_tensor_spline(
            counts, np.ones(60), [basis], [penalty], smoothing=[0.1], estimate_smoothing=False, tolerance=tolerance
        )
        for tolerance in (1e-2, 1e-10)
    )
    assert loose.converged and tight.converged
    assert np.abs(loose.coefficients - tight.coefficients).max() < 1e-3


def test_smoothing_follows_the_data():
    rng = np.random.default_rng(4)
    x = np.linspace(0, 1, 200)
    basis, penalty = BSplineAxis(0, 1, 25).basis(x), difference_penalty(25)
    wavy, straight = np.exp(3 + 2 * np.sin(15 * x)), np.exp(3 + x)
    fits = [
        fit_tensor_spline(rng.poisson(truth), np.ones(200), [basis], [penalty], max_rounds=100)
        for truth in (wavy, straight)
    ]
    assert fits[0].smoothing[0] < 0.1 * fits[1].smoothing[0]
    assert np.abs(basis @ fits[0].coefficients - np.log(wavy)).std() < 0.12
    pulls = (basis @ fits[0].coefficients - np.log(wavy)) / np.sqrt(
        np.einsum("ij,jk,ik->i", basis, fits[0].covariance, basis)
    )
    assert 0.6 < pulls.std() < 1.4


def test_even_splines_are_flat_where_they_are_mirrored():
    axis, plain = BSplineAxis(0.0, 2.0, 7, even=True), BSplineAxis(-2.0, 2.0, 13)
    np.testing.assert_allclose(axis.derivative([0.0]), 0, atol=1e-12)
    # the same function as one on both sides with mirrored coefficients
    rng = np.random.default_rng(5)
    c = rng.normal(size=7)
    both = np.concatenate([c[:0:-1], c])
    x = np.linspace(0, 2, 30)
    np.testing.assert_allclose(axis.basis(x) @ c, plain.basis(x) @ both, atol=1e-12)
    np.testing.assert_allclose(plain.basis(-x) @ both, plain.basis(x) @ both, atol=1e-12)
