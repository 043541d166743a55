import numpy as np
import pytest
from scipy.sparse import csr_array

from gammapy_accmaker.models.source_terms import (
    AmplitudeFit,
    CountsPatch,
    SourceBands,
    add_patches,
    background_weights,
    step_amplitudes,
)

RNG = np.random.default_rng(1)


def patch(where, n_energy=4, size=9):
    counts = np.zeros((n_energy, size))
    counts[:, where] = RNG.uniform(0.1, 2, (n_energy, len(where)))
    return CountsPatch.of(counts)


def test_a_patch_holds_what_it_was_made_of():
    counts = np.zeros((3, 5))
    counts[1, 2], counts[2, 4] = 2.5, 0.5
    own = CountsPatch.of(counts)
    assert own.columns.tolist() == [2, 4] and own.size == 5
    np.testing.assert_array_equal(own.toarray(), counts)
    np.testing.assert_array_equal(own.by_energy(), counts.sum(1))
    np.testing.assert_array_equal(own.scaled(np.array([5.0, 2.0, 0.0])).toarray(), counts * [[5], [2], [0]])


def test_patches_add_up_and_are_gathered():
    first, second = patch([0, 3, 4]), patch([4, 8])
    total = add_patches([first, None, second])
    np.testing.assert_allclose(total.toarray(), first.toarray() + second.toarray(), rtol=1e-6)
    assert add_patches([None, CountsPatch.of(np.zeros((4, 9)))]) is None
    member = csr_array((np.ones(9), (np.arange(9), np.arange(9) // 3)))
    np.testing.assert_allclose(total.gathered(member).toarray(), total.toarray() @ member, rtol=1e-6)
    mask = np.arange(9) % 2 == 0
    np.testing.assert_array_equal(total.inside(mask).toarray(), total.toarray()[:, mask])


def test_bands_share_the_expected_counts():
    energy = np.geomspace(0.1, 100, 151)
    spectrum = np.sqrt(energy[1:] * energy[:-1]) ** -1.5
    bands = SourceBands.choose(np.array([spectrum, np.zeros(150), spectrum[::-1]]), 3)
    counts = bands.sums(np.array([spectrum, spectrum, spectrum[::-1]]))
    assert bands.n == 7
    assert bands.amplitudes_of(0) == slice(0, 3) and bands.amplitudes_of(1) == slice(3, 4)
    for own in (counts[:3], counts[4:]):
        assert own == pytest.approx(spectrum.sum() / 3, rel=0.1)
    edges = bands.edges(0, energy)
    assert len(edges) == 4 and (edges[0], edges[-1]) == (0.1, energy[-1])
    np.testing.assert_array_equal(bands.factors(np.arange(7.0))[1], np.full(150, 3.0))
    # one with counts in a single bin has amplitudes below and above that nothing is known of
    assert SourceBands.choose(np.eye(1, 150, 70), 3).n <= 3


def test_no_band_is_without_counts():
    """More bands than there are energies with counts."""
    spectrum = np.array([0, 0, 0, 3.0, 5, 2, 0])
    bands = SourceBands.choose(spectrum[None], 40)
    assert bands.n == 3
    assert np.all(bands.sums(spectrum[None]) > 0)


def test_pairs_are_summed_where_both_amplitudes_hold():
    bands = SourceBands(np.array([[0, 0, 1], [2, 3, 3]]))
    values = RNG.normal(size=(2, 2, 3))
    expected = np.zeros((4, 4))
    for k in range(2):
        for q in range(2):
            for e in range(3):
                expected[bands.number[k, e], bands.number[q, e]] += values[k, q, e]
    np.testing.assert_allclose(bands.pair_sums(values), expected)


def test_a_step_of_amplitudes_stops_at_zero():
    information = np.array([[4.0, 1.0], [1.0, 3.0]])
    step = step_amplitudes(np.array([0.5, 1.0]), np.array([-10.0, 1.0]), information, information)
    assert step[0] == -0.5
    # what is at 0 and would go below stays there, and the other is at its own maximum
    step = step_amplitudes(np.array([0.0, 1.0]), np.array([0.1, 30.0]), np.array([[1.0, 0.9], [0.9, 1.0]]), np.eye(2))
    np.testing.assert_allclose(step, [0, 30], rtol=1e-3)
    step = step_amplitudes(np.array([0.0, 1.0]), np.array([3.0, 0.0]), np.eye(2), np.eye(2))
    assert step[0] == pytest.approx(3, rel=1e-3)


def test_the_share_of_information_and_errors_of_what_cannot_be_told():
    total, left = np.diag([100.0, 100.0, 100.0]), np.diag([100.0, 25.0, 0.0])
    fit = AmplitudeFit.of(SourceBands(np.array([[0, 1, 2]])), np.ones(3), total, left, True)
    np.testing.assert_allclose(fit.share, [1, 0.25, 0])
    np.testing.assert_allclose(fit.errors[:2], [0.1, 0.2])
    assert fit.errors[2] > 5 and np.isfinite(fit.errors[2])
    # two that look alike: each alone is well known, but not the two
    left = 100 * np.array([[1.0, 0.99999], [0.99999, 1.0]])
    fit = AmplitudeFit.of(SourceBands(np.array([[0], [1]])), np.ones(2), left, left, True)
    np.testing.assert_allclose(fit.share, 1)
    assert np.all(fit.errors > 5)


def test_weights_are_shares_of_the_background():
    np.testing.assert_allclose(background_weights(np.array([3.0, 0.0, 0.0]), np.array([1.0, 2.0, 0.0])), [0.75, 0, 0])
