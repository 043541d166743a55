"""Bins of zenith that grow until they hold enough, wobble positions, and models over zenith and azimuth; on arrays."""

import inspect

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from stores import EDGES, AnalyticModel, fitted

from gammapy_accmaker.camera.bins import azimuth_sector
from gammapy_accmaker.data.grouping import BinMinimum, grow_zenith_bins, wobble_positions, zenith_cells
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.base import MODEL_KINDS, RateModel, ScaledModel
from gammapy_accmaker.models.pooled import AzimuthBinned, ModelPerRun, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.utils.run_key import RunKey

LON, LAT = np.linspace(-2.2, 2.2, 9), np.linspace(0.5, -0.5, 9)


def test_cells_start_at_the_zenith():
    assert np.allclose(zenith_cells(0.25), [0, 0.25, 0.5, 0.75, 1])
    assert np.allclose(zenith_cells(0.4)[-3:], [0.2, 0.6, 1]) and zenith_cells(0.4)[0] <= 0


def test_bins_grow_until_they_hold_the_minimum():
    cos_zenith, ones = np.array([0.95, 0.92, 0.85, 0.75, 0.74, 0.65]), np.ones(6)
    edges = grow_zenith_bins(cos_zenith, ones, ones, ones, np.zeros(6), 0.1, BinMinimum(observations=1))
    assert np.allclose(edges, [0.6, 0.7, 0.8, 0.9, 1.0])
    # two each: the last, with one, goes to its neighbour
    edges = grow_zenith_bins(cos_zenith, ones, ones, ones, np.zeros(6), 0.1, BinMinimum(observations=2))
    assert np.allclose(edges, [0.6, 0.9, 1.0])


def test_the_minimum_of_livetime_and_observations_hold_both():
    cos_zenith, livetime, ones = np.array([0.95, 0.85, 0.75, 0.65]), np.array([3000, 500, 500, 3000.0]), np.ones(4)
    for minimum, want in (
        (BinMinimum(livetime=1000), [0.6, 0.7, 0.9, 1]),
        (BinMinimum(livetime=900, observations=2), [0.6, 0.8, 1]),
        (BinMinimum(livetime=4000), [0.6, 1]),
        (BinMinimum(livetime=1e9), [0.6, 1]),
    ):
        edges = grow_zenith_bins(cos_zenith, livetime, ones, ones, np.zeros(4), 0.1, minimum)
        assert np.allclose(edges, want), minimum


def test_a_bin_without_data_never_exists():
    """Neither where no run points, nor where all counts are excluded; the edges tile the trained range."""
    ones = np.ones(3)
    edges = grow_zenith_bins(np.array([0.95, 0.55, 0.52]), ones, ones, ones, np.zeros(3), 0.1, BinMinimum())
    assert np.allclose(edges, [0.5, 0.75, 1.0])
    no_counts = np.array([5.0, 0.0, 4.0])
    edges = grow_zenith_bins(np.array([0.95, 0.75, 0.55]), ones, ones, no_counts, np.zeros(3), 0.1, BinMinimum())
    assert len(edges) == 3 and edges[0] == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0.02, 0.05, 0.07, 0.1])
def test_zenith_angles_at_edges_leave_no_bin_empty(width):
    cells = zenith_cells(width)
    for some in (cells, cells[::2], cells[1::3], np.linspace(0.6, 1, 20)):
        cos_zenith = some[some > 0.3]
        ones = np.ones(len(cos_zenith))
        edges = grow_zenith_bins(cos_zenith, ones, ones, ones, np.zeros(len(ones)), width, BinMinimum(observations=1))
        assert np.all(np.diff(edges) > 0)
        number = np.searchsorted(edges[1:-1], cos_zenith, side="right")
        assert np.array_equal(np.unique(number), np.arange(len(edges) - 1))


def test_each_wobble_position_of_a_bin_holds_the_minimum():
    cos_zenith, ones = np.array([0.95, 0.94, 0.85, 0.84, 0.75, 0.74]), np.ones(6)
    wobble = np.array([0, 0, 0, 1, 1, 1])
    together = BinMinimum(observations=2)
    assert np.allclose(grow_zenith_bins(cos_zenith, ones, ones, ones, wobble, 0.1, together), [0.7, 0.8, 0.9, 1])
    # the second cell has one run of each; with the third there is still one run of position 0, so it all goes to the
    # first
    each = BinMinimum(observations=2, per_wobble=True)
    assert np.allclose(grow_zenith_bins(cos_zenith, ones, ones, ones, wobble, 0.1, each), [0.7, 1])
    more = np.append(wobble[:-1], 0)
    assert np.allclose(grow_zenith_bins(cos_zenith, ones, ones, ones, more, 0.1, each), [0.7, 0.9, 1])


def test_wobble_positions_are_found_whatever_the_order():
    rng = np.random.default_rng(0)
    true = np.array([[359.95, -30.0], [0.65, -30.0], [83.6, 22.5], [83.6, 21.5]])
    which = rng.integers(0, 4, 60)
    ra, dec = (true[which] + rng.uniform(-0.05, 0.05, (60, 2))).T
    number, positions = wobble_positions(ra % 360, dec, 0.3)
    assert len(positions) == 4
    order = rng.permutation(60)
    again, same = wobble_positions(ra[order] % 360, dec[order], 0.3)
    assert np.array_equal(again, number[order]) and np.allclose(same, positions)
    apart = np.abs((positions[:, None, 0] - true[None, :, 0] + 180) % 360 - 180) + np.abs(
        positions[:, None, 1] - true[None, :, 1]
    )
    rows, columns = linear_sum_assignment(apart)
    assert apart[rows, columns].max() < 0.1 and np.array_equal(np.argsort(columns)[which], number)
    assert len(wobble_positions(ra, dec, 1.5)[1]) == 2
    assert wobble_positions(np.array([np.nan]), np.array([np.nan]), 1.0)[0][0] in (0, -1)
    assert wobble_positions(np.zeros(0), np.zeros(0), 1.0)[1].shape == (0, 2)
    # a position of which a half is known is no position
    number, positions = wobble_positions(np.array([10.0, np.nan, 10.0]), np.array([np.nan, 5.0, 5.0]), 1.0)
    assert list(number) == [-1, -1, 0] and np.allclose(positions, [[10, 5]])


def test_sectors_wrap():
    assert list(azimuth_sector(np.array([0.0, 180.0]), [0, 90, 180, 359.9, 360, -1])) == [0, 0, 1, 1, 0, 1]
    assert list(azimuth_sector(np.array([45.0, 135, 315]), [44, 45, 200, 314.9, 315, 359])) == [2, 0, 1, 1, 2, 2]


class Flat(RateModel):
    """A rate that is the same everywhere."""

    kind = "flat of the tests"
    energy_edges, offset_max, half_width, is_radial, zenith_range = EDGES, 2.5, 2.5, True, None

    def __init__(self, value, error=0.1):
        self.value, self.error = value, error

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return np.full((len(energy), len(fov_lon)), self.value)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        return np.full((len(energy_edges) - 1, len(fov_lon)), self.value)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return np.full((len(energy), len(fov_lon)), self.error)

    def to_arrays(self):
        return {"value": np.array(self.value)}

    @classmethod
    def from_arrays(cls, arrays):
        return cls(float(arrays["value"]))


def value(model, cos_zenith):
    return float(model.integral_grid(EDGES[:2], LON[:1], LAT[:1], cos_zenith)[0, 0])


def test_interpolation_is_linear_in_the_rate_or_its_logarithm():
    nodes, rates = np.array([0.5, 0.7, 1.0]), [4.0, 1.0, 9.0]
    linear, log = (ZenithInterpolated(nodes, [Flat(r) for r in rates], log=log) for log in (False, True))
    assert value(linear, 0.6) == pytest.approx(2.5) and value(log, 0.6) == pytest.approx(2.0)
    assert value(linear, 0.85) == pytest.approx(5.0) and value(log, 0.85) == pytest.approx(3.0)
    for model in (linear, log):
        assert [value(model, z) for z in nodes] == rates
        # clamped, never extrapolated
        assert value(model, 0.1) == 4.0 and value(model, 1.0) == 9.0 and model.zenith_range == (0.5, 1.0)
        assert model.rate(1.0, 0.0, 0.0, 0.6) == pytest.approx(value(model, 0.6))


def test_trap_the_logarithm_of_an_empty_bin_is_never_interpolated():
    log = ZenithInterpolated([0.5, 1.0], [Flat(0.0), Flat(8.0)], log=True)
    assert value(log, 0.75) == 4.0 and value(log, 0.5) == 0.0
    assert value(ZenithInterpolated([0.5, 1.0], [Flat(0.0), Flat(0.0)], log=True), 0.6) == 0
    for z in np.linspace(0, 1, 41):
        assert 0 <= value(log, z) <= 8


def test_one_bin_is_a_model_for_all():
    for model in (ZenithInterpolated([0.8], [Flat(3.0)], log=True), ZenithBinned([0.7, 0.9], [Flat(3.0)])):
        assert [value(model, z) for z in (0.1, 0.8, 1.0)] == 3 * [3.0]


def test_binned_zenith_takes_the_bin():
    model = ZenithBinned([0.4, 0.6, 0.8, 1.0], [Flat(1.0), Flat(2.0), Flat(3.0)])
    assert [value(model, z) for z in (0.1, 0.5, 0.6, 0.79, 0.8, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert list(model.zenith_edges) == [0.6, 0.8] and model.zenith_range == (0.4, 1.0)


def test_errors_of_independent_models_add_in_quadrature():
    log = ZenithInterpolated([0.5, 1.0], [Flat(1.0, 0.3), Flat(1.0, 0.4)], log=True)
    linear = ZenithInterpolated([0.5, 1.0], [Flat(1.0, 0.3), Flat(3.0, 0.4)], log=False)
    errors = [float(m.relative_error_grid(EDGES[:1], LON[:1], LAT[:1], 0.75)[0, 0]) for m in (log, linear)]
    assert errors[0] == pytest.approx(np.hypot(0.15, 0.2))
    assert errors[1] == pytest.approx(np.hypot(0.3 * 0.5, 1.2 * 0.5) / 2)


def test_azimuth_takes_the_sector_and_without_one_the_mean():
    model = AzimuthBinned([0, 90, 180, 270], [Flat(1.0), Flat(2.0), Flat(4.0)], [0, 1, 3], [100.0, 100.0, 200.0])
    for azimuth, want in ((10, 1), (100, 2), (300, 4), (-10, 4), (370, 1)):
        assert value(model.at_azimuth(azimuth), 1.0) == want
        assert model.rate(1.0, 0.0, 0.0, 0.9, azimuth) == want
    narrow = AzimuthBinned([0, 180, 200], [Flat(1.0), Flat(3.0)], [0, 2], [1.0, 1.0])
    assert value(narrow.at_azimuth(185), 1.0) == 3.0  # middles at 90, 190 and 280 deg
    around = AzimuthBinned([10, 100, 350], [Flat(1.0), Flat(2.0)], [0, 1], [1.0, 1.0])
    assert value(around.at_azimuth(0), 1.0) == 1.0  # middles at 55, 225 and 360 deg
    # a sector that was not trained takes the nearest
    assert value(model.at_azimuth(200), 1.0) in (2, 4)
    assert value(model, 1.0) == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 4)
    assert model.rate(1.0, 0.0, 0.0) == pytest.approx(0.25 * 1 + 0.25 * 2 + 0.5 * 4)
    assert model.relative_error_grid(EDGES[:1], LON[:1], LAT[:1])[0, 0] == pytest.approx(0.1)
    got = model.rate(np.array([1.0, 1.0]), 0.0, 0.0, 1.0, np.array([10.0, 100.0]))
    assert list(got) == [1.0, 2.0]
    scaled = ScaledModel(model, 3.0)
    assert value(scaled.at_azimuth(100), 1.0) == 6.0 and list(scaled.azimuth_edges) == [0, 90, 180, 270]


def test_models_of_runs_cover_what_any_of_them_covers():
    first, second = Flat(1.0), Flat(3.0)
    second.energy_edges, second.offset_max, second.zenith_range = np.array([0.05, 1.0, 300.0]), 3.0, (0.3, 0.9)
    model = ModelPerRun([first, second], [RunKey(7), RunKey(8), RunKey(9)], [0, 1, 1])
    assert list(model.energy_edges) == [0.05, 300.0] and model.offset_max == 3 and model.zenith_range == (0.3, 0.9)
    assert [model.for_run(RunKey(k)) for k in (7, 8, 9)] == [first, second, second]
    assert value(model, 1.0) == 2.0 and model.rate(1.0, 0.0, 0.0) == 2.0
    assert np.all(model.relative_error_grid(EDGES[:2], LON, LAT) == 0.1)
    with pytest.raises(ObservationError, match="observation 6: no model"):
        model.for_run(RunKey(6))


def test_no_model_takes_an_angle_that_nobody_gave():
    kinds = [kind for kind in MODEL_KINDS.values() if kind.__module__.startswith("gammapy_accmaker")]
    assert len(kinds) > 5
    for kind in [*kinds, ScaledModel]:
        for name in ("rate_grid", "integral_grid", "relative_error_grid", "rate"):
            default = inspect.signature(getattr(kind, name)).parameters["cos_zenith"].default
            assert np.isnan(default), (kind, name)


def test_models_that_know_no_azimuth_are_their_own():
    model = AnalyticModel()
    assert model.at_azimuth(123.0) is model and len(model.azimuth_edges) == 0
    assert model.rate(1.0, 0.3, 0.2, 0.8, 77.0) == model.rate(1.0, 0.3, 0.2, 0.8)


@pytest.mark.parametrize("kind", ["radial", "grid"])
def test_nested_models_are_restored_exactly(kind):
    by_zenith = [
        ZenithInterpolated([0.6, 0.9], [fitted(kind, seed=1), fitted(kind, seed=2)], True, (0.55, 0.95)),
        ZenithBinned([0.5, 0.7, 1.0], [fitted(kind, seed=3), fitted(kind, seed=4)]),
    ]
    before = AzimuthBinned([0, 180], by_zenith, [0, 1], [1.0, 2.0])
    after = AzimuthBinned.from_arrays(before.to_arrays())
    assert after.zenith_range == before.zenith_range == (0.5, 1.0) and after.offset_max == before.offset_max
    for azimuth in (10, 200):
        for z in (0.4, 0.65, 0.75):
            here, there = (m.at_azimuth(azimuth).integral_grid(EDGES, LON, LAT, z) for m in (before, after))
            assert np.array_equal(here, there) and here.sum() > 0
    with pytest.raises(TypeError, match="no serial form"):
        ZenithBinned([0.5, 1.0], [AnalyticModel()]).to_arrays()
