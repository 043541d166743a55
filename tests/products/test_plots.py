"""Pictures of a model: what they show is what the model says, where it has data."""

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
import pytest
import stores

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.models.fit_counts import FitCounts
from gammapy_accmaker.products import plots
from gammapy_accmaker.products.plots import View

WIDE = {"energy": {"min": "0.05 TeV", "max": "100 TeV"}}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module", params=["spline", "grid", "radial"])
def model(request):
    store = stores.full_store()
    options = WIDE | {"model": {"type": request.param}}
    maker = AcceptanceBackgroundMaker(options, exclusion=[stores.source_region(store)])
    return maker.fit(stores.observations(store)[:4]).model


def counts_of(spectrum, edges):
    fov = FovBins.rings(2.0, 2)
    return FitCounts(np.asarray(edges, float), fov, np.tile(np.asarray(spectrum)[:, None] / 2, 2), np.ones(2))


def test_view_is_where_the_events_are(model):
    edges = np.geomspace(0.1, 100, 31)
    spectrum = np.r_[0, 0, 3, 1000, 800, np.full(20, 100.0), 8, 4, 0, 2, 0]
    view = View.of(model.rate_model, counts_of(spectrum, edges), 2.0)
    np.testing.assert_allclose([view.low, view.high], [edges[2], edges[29]])
    assert view.offset_max == 2.0
    np.testing.assert_allclose(view.few, [(edges[k], edges[k + 1]) for k in (2, 25, 26, 27, 28)])
    assert edges[3] < view.typical[0] < edges[4] and edges[20] < view.typical[1] < edges[25]
    all_of_it = View.of(model.rate_model)
    np.testing.assert_allclose([all_of_it.low, all_of_it.high], model.rate_model.energy_edges[[0, -1]])
    nothing = View.of(model.rate_model, counts_of(np.zeros(30), edges))
    assert nothing.low == all_of_it.low


@pytest.mark.parametrize("spectrum", [[5.0], [0, 1, 0], [1e6, 1, 1]])
def test_view_of_odd_counts_has_energies_in_order(spectrum, model):
    view = View.of(model.rate_model, counts_of(spectrum, np.geomspace(0.3, 30, len(spectrum) + 1)))
    energies = view.at(model.rate_model, [np.nan]).energies(3)
    assert np.all(np.diff(energies) >= 0) and view.low <= energies[0] and energies[-1] <= view.high * (1 + 1e-9)


def test_spectrum_shows_the_rate_and_its_error_where_there_are_events(model):
    ax = model.plot_spectrum([0.5] * u.deg, plt.figure().add_subplot())
    (line,) = ax.lines
    energy, rate = line.get_data()
    low, high = model.energy_range.to_value("TeV")
    assert low <= ax.get_xlim()[0] < 2 * low or model.view.at(model.rate_model, [np.nan]).low > low
    assert ax.get_xlim()[1] == pytest.approx(high) and high <= 100.0001
    angle = 2 * np.pi * np.arange(24) / 24
    lon, lat = 0.5 * np.cos(angle), 0.5 * np.sin(angle)
    expected = model.rate(energy[100] * u.TeV, lon * u.deg, lat * u.deg).to_value("s-1 MeV-1 sr-1").mean()
    assert rate[100] == pytest.approx(expected, rel=0.02)
    (band,) = (c for c in ax.collections if len(c.get_paths()))
    error = model.rate_model.fit_error_grid(energy[100:101], np.array([0.5]), np.zeros(1), np.nan)[0, 0]
    at = band.get_paths()[0].vertices
    edges = at[np.isclose(at[:, 0], energy[100], rtol=1e-9), 1]
    np.testing.assert_allclose([edges.min(), edges.max()], rate[100] * np.exp([-error, error]), rtol=1e-6)
    if model.rate_model.zenith_range is not None:
        zenith = np.degrees(np.arccos(model.rate_model.middle_cos_zenith))
        assert f"zenith angle {zenith:.0f} deg" in ax.get_title()


def test_energies_with_few_events_are_shaded(model):
    ax = model.plot_spectrum(ax=plt.figure().add_subplot())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert ("fewer than 10 events\nper 0.1 decade" in labels) == bool(model.view.few)
    spans = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    for low, high in model.view.few:
        inside = max(low, ax.get_xlim()[0]) * 1.01, min(high, ax.get_xlim()[1]) * 0.99
        if inside[0] < inside[1]:
            assert any(s.x0 <= inside[0] and inside[1] <= s.x1 for s in spans)


def test_images_begin_at_zero_and_end_at_the_largest_offset(model):
    figure, axes = plt.subplots(1, 2)
    for relative, ax in zip((False, True), axes, strict=True):
        plots.plot_rate_image(model.rate_model, 2.0, ax, relative=relative, view=model.view)
        mesh = ax.collections[0]
        assert mesh.norm.vmin == 0
        values = np.ma.array(mesh.get_array().reshape(161, 161))
        mask, x = np.ma.getmaskarray(values), np.linspace(-2.5, 2.5, 161)
        beyond = np.hypot(*np.meshgrid(x, x)) > 2.5
        if not model.view.is_square:
            assert mask[beyond].all()
        assert not mask[~beyond].any()
        # x runs along the columns
        here = model.rate(2 * u.TeV, x[100] * u.deg, x[40] * u.deg).value
        scale = model.rate(2 * u.TeV, 0 * u.deg, 0 * u.deg).value if relative else 1
        assert values[40, 100] == pytest.approx(here / scale)
        assert ax.get_title().startswith("2 TeV")


def test_asymmetry_is_the_deviation_from_the_ring(model):
    ax = plots.plot_asymmetry(model.rate_model, 2.0, plt.figure().add_subplot(), view=model.view)
    mesh = ax.collections[0]
    assert mesh.norm.vmin == -mesh.norm.vmax <= -5 and mesh.get_cmap().name == "RdBu_r"
    values, x = mesh.get_array().reshape(161, 161), np.linspace(-2.5, 2.5, 161)
    i, j = 120, 60
    theta, angle = np.hypot(x[i], x[j]), 2 * np.pi * np.arange(360) / 360
    ring = model.rate(2 * u.TeV, theta * np.cos(angle) * u.deg, theta * np.sin(angle) * u.deg).value.mean()
    expected = 100 * (model.rate(2 * u.TeV, x[i] * u.deg, x[j] * u.deg).value / ring - 1)
    assert values[j, i] == pytest.approx(expected, abs=1.0)
    # beyond the fit a grid goes on: a ring there is not one of what was fitted
    assert np.array_equal(np.isnan(values), np.hypot(*np.meshgrid(x, x)) > 2.5)
    if model.rate_model.is_radial:
        assert np.nanmax(np.abs(values)) < 1
    pair = [(2.0, 20.0), (20.0, 2.0)]
    both = [plots.plot_asymmetry(model.rate_model, a, plt.figure().add_subplot(), beside=[b]) for a, b in pair]
    assert both[0].collections[0].norm.vmax == both[1].collections[0].norm.vmax


def test_unsure_parts_of_an_image_are_hatched_or_said(model):
    rate_model = model.rate_model

    class Unsure(type(rate_model)):
        kind = ""

        def fit_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=np.nan):
            return np.where(np.asarray(fov_lon) > limit, 0.5, 0.01)[None]

    unsure = object.__new__(Unsure)
    unsure.__dict__.update(rate_model.__dict__)
    titles = []
    for limit in (-3, 1, 3):
        ax = plots.plot_rate_image(unsure, 2.0, plt.figure().add_subplot(), view=model.view)
        titles.append(ax.get_title())
        hatches = [c for c in ax.collections if getattr(c, "hatches", None)]
        assert bool(hatches) == (limit == 1)
    assert "nearly everywhere" in titles[0] and "hatched" in titles[1] and "\n" not in titles[2]


def test_peek_shows_spectrum_profile_image_and_asymmetry(model):
    figure = model.peek()
    spectrum, profile, image, last = (ax for ax in figure.axes if ax.get_label() != "<colorbar>")
    assert spectrum.get_yscale() == "log" and profile.get_xlabel() == "offset [deg]" and profile.get_ylim()[0] == 0
    assert len(profile.lines) == 3 and profile.get_xlim() == (0, 2.5)
    assert image.get_aspect() == 1
    assert (last.get_ylabel() == "error of the rate [%]") == model.rate_model.is_radial
    assert figure.get_suptitle() == model.in_brief()
    for line in profile.lines:
        assert line.get_ydata()[0] == pytest.approx(1)


def test_ticks_of_energy_are_plain_numbers(model):
    figure, axes = plt.subplots(1, 2)
    for ax, (low, high), expected in zip(
        axes, [(0.3, 20), (0.1, 100)], [["0.5", "1", "2", "5", "10", "20"], ["0.1", "1", "10", "100"]], strict=True
    ):
        ax.set(xscale="log", xlim=(low, high))
        plots.log_energy_axis(ax.xaxis, low, high)
        figure.canvas.draw()
        shown = [t.get_text() for t in ax.get_xticklabels() if low * 0.999 <= t.get_position()[0] <= high * 1.001]
        assert shown == expected


def test_model_that_was_not_fitted_here_is_drawn_whole(model):
    irf_model = AcceptanceModel.from_irf(
        AcceptanceBackgroundMaker(model=model).make_irf(stores.observations(stores.full_store())[0])
    )
    figure = irf_model.peek()
    assert figure.axes[0].get_xlim()[1] == pytest.approx(irf_model.rate_model.energy_edges[-1])
