"""Bins of energy and field of view: closed forms and properties."""

import astropy.units as u
import numpy as np
import pytest
from gammapy.maps import MapAxis
from hypothesis import given, settings
from hypothesis import strategies as st

from gammapy_accmaker.camera.bins import (
    FovBins,
    axis_index,
    check_edges,
    energy_edges_from_axis,
    energy_edges_per_decade,
    offset,
)
from gammapy_accmaker.errors import InputError

BINS = {
    "rings": FovBins.rings(2.5, 12),
    "rings with a hole": FovBins((np.array([0.3, 0.5, 1.0, 2.5]),)),
    "one ring": FovBins.rings(2.5, 1),
    "grid": FovBins.grid(2.5, 12),
    "uneven grid": FovBins((np.array([-2.0, -0.5, 0.1, 3.0]), np.array([-1.0, 0.0, 0.2, 2.0, 2.5]))),
}


@pytest.fixture(params=BINS)
def bins(request):
    return BINS[request.param]


@pytest.mark.parametrize("edges", [[1.0], [], [1, 1], [2, 1], [0, np.nan, 1], [0, np.inf], [[0, 1], [2, 3]]])
def test_bad_edges_name_the_argument(edges):
    with pytest.raises(InputError, match=r"(?s)offset edges.*increasing"):
        check_edges("offset edges", edges)


def test_negative_offset_is_refused():
    with pytest.raises(InputError, match=r"-1.*>= 0"):
        FovBins((np.array([-1.0, 0.0, 1.0]),))


def test_grid_names_the_bad_axis():
    with pytest.raises(InputError, match="fov_lat"):
        FovBins((np.array([0.0, 1.0]), np.array([1.0, 0.0])))


def test_energy_edges_per_decade():
    edges = energy_edges_per_decade(100 * u.GeV, 100 * u.TeV, 10)
    np.testing.assert_allclose(edges, np.logspace(-1, 2, 31))


def test_energy_edges_per_decade_never_fewer_bins_than_asked():
    edges = energy_edges_per_decade(0.1 * u.TeV, 40 * u.TeV, 10)
    np.testing.assert_allclose(edges[[0, -1]], [0.1, 40])
    assert np.log10(edges[1] / edges[0]) <= 0.1


def test_energy_edges_from_axis_converts_to_tev():
    axis = MapAxis.from_energy_bounds("100 GeV", "10 TeV", nbin=4)
    np.testing.assert_allclose(energy_edges_from_axis(axis), np.logspace(-1, 1, 5))


def test_energy_axis_of_wrong_name_or_unit():
    with pytest.raises(InputError, match=r"'energy_true'.*'energy'"):
        energy_edges_from_axis(MapAxis.from_energy_bounds("1 TeV", "10 TeV", nbin=2, name="energy_true"))
    with pytest.raises(InputError, match=r"unit.*TeV"):
        energy_edges_from_axis(MapAxis.from_edges([1, 2, 3], unit="s", name="energy"))


def test_ring_solid_angles_sum_to_the_cap():
    total = BINS["rings"].solid_angle.sum()
    assert total == pytest.approx(2 * np.pi * (1 - np.cos(np.radians(2.5))), rel=1e-12)


def test_grid_solid_angles_sum_to_the_square():
    total = BINS["grid"].solid_angle.sum()
    assert total == pytest.approx(2 * np.radians(2.5) * 2 * np.sin(np.radians(2.5)), rel=1e-12)


def test_shapes(bins):
    assert bins.size == np.prod(bins.shape) == len(bins.solid_angle) == len(bins.fov_lon) == len(bins.fov_lat)
    assert (bins.solid_angle > 0).all()


def test_centres_lie_in_their_own_bin(bins):
    np.testing.assert_array_equal(bins.index(bins.fov_lon, bins.fov_lat), np.arange(bins.size))


def test_fov_lat_runs_fastest():
    fov = FovBins((np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0, 3.0])))
    assert fov.index(np.array([0.5, 0.5, 1.5]), np.array([0.5, 1.5, 0.5])).tolist() == [0, 1, 3]
    assert fov.fov_lon.tolist() == [0.5, 0.5, 0.5, 1.5, 1.5, 1.5]
    assert fov.fov_lat.tolist() == [0.5, 1.5, 2.5] * 2


def test_first_edge_belongs_to_the_bin_and_the_last_to_none():
    edges = np.array([1.0, 2.0, 4.0])
    values = np.array([0.999, 1.0, 1.999, 2.0, 3.999, 4.0, np.nan, -np.inf, np.inf])
    assert axis_index(edges, values).tolist() == [-1, 0, 0, 1, 1, -1, -1, -1, -1]
    fov = BINS["uneven grid"]
    assert fov.index(np.array([3.0, np.nan, 0.2]), np.array([0.1, 0.1, np.nan])).tolist() == [-1, -1, -1]
    assert BINS["rings"].index(np.array([np.nan]), np.array([0.0])).tolist() == [-1]


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_index_is_what_comparing_with_every_edge_gives(data):
    fov = BINS[data.draw(st.sampled_from(sorted(BINS)))]
    position = st.floats(-4, 4)
    lon, lat = data.draw(position), data.draw(position)
    first = float(offset(lon, lat)) if fov.is_radial else lon
    inside = (fov.edges[0][:-1] <= first) & (first < fov.edges[0][1:])
    if not fov.is_radial:
        inside = np.outer(inside, (fov.edges[1][:-1] <= lat) & (lat < fov.edges[1][1:])).ravel()
    expected = np.flatnonzero(inside).tolist() or [-1]
    assert fov.index(np.array([lon]), np.array([lat])).tolist() == expected


def test_every_bin_has_its_share_of_points_thrown_on_the_sphere(bins):
    rng = np.random.default_rng(1)
    size, cap = 200_000, 4.5
    theta = np.arccos(1 - rng.uniform(0, 1, size) * (1 - np.cos(np.radians(cap))))
    phi = rng.uniform(0, 2 * np.pi, size)
    lon = np.degrees(np.arctan2(np.sin(theta) * np.cos(phi), np.cos(theta)))
    lat = np.degrees(np.arcsin(np.sin(theta) * np.sin(phi)))
    index = bins.index(lon, lat)
    counts = np.bincount(index[index >= 0], minlength=bins.size)
    expected = size * bins.solid_angle / (2 * np.pi * (1 - np.cos(np.radians(cap))))
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - bins.size) < 5 * np.sqrt(2 * bins.size)


def test_subpoints_lie_in_their_bin(bins):
    lon, lat = bins.subpoints(5)
    assert len(lon) == bins.size
    expected = np.repeat(np.arange(bins.size), lon.shape[1])
    np.testing.assert_array_equal(bins.index(lon.ravel(), lat.ravel()), expected)


def test_grid_subpoints_are_even_in_solid_angle():
    fov = BINS["grid"]
    lon, lat = fov.subpoints(4)
    # a point stands for the cell between it and its neighbours: a grid four times as fine, centred on the points
    fine = FovBins.grid(2.5, 48)
    cell = fine.solid_angle[fine.index(lon.ravel(), lat.ravel())].reshape(lon.shape)
    np.testing.assert_allclose(cell, np.broadcast_to(fov.solid_angle[:, None] / 16, cell.shape), rtol=1e-3)
    assert len(np.unique(fine.index(lon.ravel(), lat.ravel()))) == fine.size


def test_ring_subpoints_are_even_in_solid_angle():
    fov = BINS["rings"]
    n = 4
    lon, lat = fov.subpoints(n)
    theta = np.radians(offset(lon, lat))
    # the points' circles stand for belts of the same solid angle
    cos = np.cos(np.radians(fov.edges[0]))
    belts = np.floor((np.cos(theta) - cos[:-1, None]) / np.diff(cos)[:, None] * n).astype(int)
    for belt in belts:
        assert (np.bincount(belt, minlength=n) == lon.shape[1] // n).all()
    # and the points of a circle are even in angle, and no farther apart than the circles
    phi = np.sort(np.arctan2(lat, lon).reshape(fov.size, n, -1), axis=-1)
    step = np.diff(phi, axis=-1)
    np.testing.assert_allclose(step, 2 * np.pi / phi.shape[-1], rtol=1e-3)
    assert np.degrees(step * np.sin(theta.reshape(phi.shape)[..., 1:])).max() <= 2.5 / 12 / n * 1.001


def test_mean_over_subpoints_is_the_integral_over_the_bin(bins):
    lon, lat = bins.subpoints(20)
    mean = np.cos(np.radians(offset(lon, lat))).mean(1)
    first = np.radians(bins.edges[0])
    if bins.is_radial:
        expected = 0.5 * (np.cos(first[:-1]) + np.cos(first[1:]))
    else:
        lat = np.radians(bins.edges[1])
        primitive = lat / 2 + np.sin(2 * lat) / 4
        expected = np.outer(np.diff(np.sin(first)), np.diff(primitive)).ravel() / bins.solid_angle
    np.testing.assert_allclose(1 - mean, 1 - expected, rtol=3e-3)


def test_offset_max_reaches_the_farthest_corner(bins):
    corners = np.meshgrid(*bins.edges) if not bins.is_radial else (bins.edges[0], np.zeros_like(bins.edges[0]))
    farthest = offset(*(np.ravel(c) for c in corners)).max()
    assert bins.offset_max >= farthest - 1e-9
    if bins is not BINS["uneven grid"]:
        assert bins.offset_max == pytest.approx(farthest)


def test_offset_is_exact_near_the_centre_and_on_axes():
    assert float(offset(1e-9, 0.0)) == pytest.approx(1e-9, rel=1e-9)
    np.testing.assert_allclose(offset(np.array([2.0, 0.0, 90.0]), np.array([0.0, -3.0, 60.0])), [2.0, 3.0, 90.0])


def test_edges_given_are_not_changed():
    edges = np.array([0.0, 1.0, 2.0])
    FovBins((edges,)).subpoints(3)
    assert edges.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("width", [0.0, 0.03, 0.0875])
def test_squares_are_spread_over_the_bins_that_they_reach(width):
    """Squares side by side fill the bins evenly, whatever their size; what is outside of the bins is lost."""
    n = 120
    at = (np.arange(n) - (n - 1) / 2) * (width or 0.05)
    lon, lat = (a.ravel() for a in np.meshgrid(at, at))
    for bins in (
        FovBins.grid(1.0, 20),
        FovBins((np.linspace(-1, 1, 14), np.linspace(-0.5, 1, 8))),
        FovBins.rings(1.0, 7),
    ):
        total = np.zeros(bins.size)
        for number, share in bins.spread(lon, lat, width):
            assert np.all((share >= 0) & (share <= 1))
            inside = number >= 0
            total += np.bincount(number[inside], share[inside], bins.size)
        middle = np.zeros(bins.size)
        inside = bins.index(lon, lat) >= 0
        np.add.at(middle, bins.index(lon, lat)[inside], 1.0)
        if width == 0:
            np.testing.assert_array_equal(total, middle)
        elif not bins.is_radial:
            seen = np.abs(bins.fov_lon) + np.abs(bins.fov_lat) < 1.2
            expected = bins.solid_angle / np.radians(width) ** 2
            np.testing.assert_allclose(total[seen], expected[seen], rtol=2e-3)
            # by their middle alone they beat with the bins
            assert np.abs(middle / expected - 1).max() > 0.02
        else:
            np.testing.assert_allclose(total, bins.solid_angle / np.radians(width) ** 2, rtol=0.25)


def test_a_square_beside_the_bins_has_no_part_in_them():
    bins = FovBins((np.array([0.5, 1.0]),))
    for lon, share in ((0.4, 0.0), (0.49, 0.4), (0.7, 1.0), (1.02, 0.3), (1.2, 0.0)):
        parts = [own[0] for number, own in bins.spread(np.array([lon]), np.zeros(1), 0.1) if number[0] >= 0]
        assert sum(parts) == pytest.approx(share, abs=1e-9)
