"""Pictures of a fitted model. Each draws on the axes it is given, or on the current ones, and returns them.

What is drawn is where the model has data: a `View` has the energies with events and the largest offset of the fit.
Without a zenith angle a model is drawn at the middle of its trained range. Rates are drawn in a perceptually uniform
colour scale that begins at 0, asymmetries in one that diverges around 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.fit_counts import FitCounts

_RATE_MAP, _DIFFERENCE_MAP = "viridis", "RdBu_r"
_RATE_LABEL = r"rate [s$^{-1}$ MeV$^{-1}$ sr$^{-1}$]"
_RELATIVE_LABEL = "rate relative to the centre"
_RING_POSITIONS = 24
_N_PIXELS = 161  # of an image, along a side
_FEW = 10  # events of a tenth of a decade; energies with fewer are shaded
_UNSURE = 0.2  # relative error of the fit; what is less sure is hatched in an image
_MOSTLY = 0.9  # of an image that is unsure: it is said, and not hatched
_LARGEST_ERROR = 2.0  # of a logarithm, that is drawn
_BELOW_THRESHOLD = 1e-4  # of the largest rate times energy; what lies below it at low energies is not drawn
_TYPICAL = (0.05, 0.99)  # shares of the events below the lowest and the highest energy that pictures choose
_LEAST_ASYMMETRY = 5.0  # %, of the colour scale
_FRAME = {"edgecolor": "none", "framealpha": 0.8}  # of a legend: grey is seen on it where the axes are grey


@dataclass(frozen=True)
class View:
    """Where a model has data.

    Attributes
    ----------
    low, high : float
        Energies in TeV.
    offset_max : float
        In deg; of a model on a square, half its side.
    is_square : bool
        Whether the model reaches into the corners.
    few : list of tuple of float
        Ranges of energy in TeV with few events.
    typical : tuple of float
        Low and high energy in TeV between which most events lie.
    """

    low: float
    high: float
    offset_max: float
    is_square: bool
    typical: tuple[float, float]
    few: list[tuple[float, float]] = field(default_factory=list)

    @classmethod
    def of(cls, model: RateModel, counts: FitCounts | None = None, offset_max: float | None = None) -> View:
        """The view of a model: of the counts of its fit, or of all that it covers.

        ``offset_max``: of the configuration, in deg, where the model goes on beyond it.
        """
        offset_max = model.half_width if offset_max is None else min(offset_max, model.half_width)
        is_square = model.offset_max > 1.2 * model.half_width
        found = None if counts is None else counts.energy_range
        if counts is None or found is None:
            low, high = (float(e) for e in model.energy_edges[[0, -1]])
            return cls(low, high, offset_max, is_square, _inner_half(low, high))
        edges, spectrum = counts.energy_edges, counts.counts.sum(1)
        share = np.cumsum(spectrum) / spectrum.sum()
        middle = np.sqrt(edges[1:] * edges[:-1])
        first, last = (int(np.searchsorted(share, at)) for at in _TYPICAL)
        typical = (float(middle[first]), float(middle[last])) if last > first else _inner_half(*found)
        per_tenth = spectrum / (np.diff(np.log10(edges)) / 0.1)
        few = [
            (float(edges[k]), float(edges[k + 1]))
            for k in np.flatnonzero(per_tenth < _FEW)
            if edges[k + 1] > found[0] and edges[k] < found[1]
        ]
        return cls(*found, offset_max, is_square, typical, few)

    def at(self, model: RateModel, cos_zeniths) -> View:
        """The view at zenith angles: events of runs at others may lie below the threshold at these."""
        energy = np.clip(np.geomspace(self.low, self.high, 100), *model.energy_edges[[0, -1]])
        ring = self.offset_max * np.array([0.2, 0.5])
        rates = [energy[:, None] * model.rate_grid(energy, ring, np.zeros(2), float(z)) for z in cos_zeniths]
        seen = np.max([rate.sum(1) / max(rate.sum(1).max(), 1e-300) for rate in rates], axis=0)
        peak = float(energy[np.max([int(rate.sum(1).argmax()) for rate in rates])])
        low = float(energy[np.flatnonzero(seen > _BELOW_THRESHOLD)[0]]) if np.any(seen > 0) else self.low
        high = self.typical[1]
        return replace(self, low=low, typical=(max(self.typical[0], min(peak, 0.5 * high)), high))

    def energies(self, n: int) -> np.ndarray:
        """Energies in TeV, from the threshold to where few events lie above."""
        return np.geomspace(*self.typical, n) if n > 1 else np.sqrt([self.typical[0] * self.typical[1]])

    def inside(self, lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        """Whether positions in deg are drawn."""
        if self.is_square:
            return (np.abs(lon) <= self.offset_max) & (np.abs(lat) <= self.offset_max)
        return np.hypot(lon, lat) <= self.offset_max


def _inner_half(low, high):
    """The inner half of a range of energies, in logarithm."""
    return low**0.75 * high**0.25, low**0.25 * high**0.75


def _at_zenith(model: RateModel, cos_zenith: float = np.nan) -> str:
    """The zenith angle at which a model is drawn, for a title; empty where it does not depend on it."""
    if model.zenith_range is None:
        return ""
    cos_zenith = model.middle_cos_zenith if np.isnan(cos_zenith) else cos_zenith
    return f"zenith angle {np.degrees(np.arccos(np.clip(cos_zenith, -1, 1))):.0f} deg"


def log_energy_axis(axis, low: float, high: float) -> None:
    """Ticks at 0.1, 0.2, 0.5, 1, ... where the range is short, at the decades otherwise, as plain numbers."""
    subs = (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    axis.set_major_locator(LogLocator(10, subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _ring_means(model, energy, offsets, cos_zenith=np.nan):
    """Mean rate over rings, shape (energy, offset); offsets in deg."""
    angle = 2 * np.pi * (np.arange(_RING_POSITIONS) + 0.5) / _RING_POSITIONS
    theta = np.radians(offsets)[:, None]
    lon = np.degrees(np.arctan2(np.sin(theta) * np.cos(angle), np.cos(theta) * np.ones_like(angle)))
    lat = np.degrees(np.arcsin(np.sin(theta) * np.sin(angle)))
    rate = model.rate_grid(energy, lon.ravel(), lat.ravel(), cos_zenith)
    return rate.reshape(len(energy), *lon.shape).mean(-1)


def _draw(ax, x, curves, labels, legend=None, errors=None, **axes):
    """Curves, shape (len(labels), len(x)), with gaps where they are not > 0, and bands of their relative errors."""
    ax = plt.gca() if ax is None else ax
    colours = plt.get_cmap(_RATE_MAP)(np.linspace(0, 0.85, len(labels)))
    errors = [None] * len(labels) if errors is None else errors
    for curve, label, colour, error in zip(curves, labels, colours, errors, strict=True):
        seen = np.where(curve > 0, curve, np.nan)
        ax.plot(x, seen, color=colour, label=label)
        if error is not None:
            factor = np.exp(np.minimum(error, _LARGEST_ERROR))
            ax.fill_between(x, seen / factor, seen * factor, color=colour, alpha=0.25, lw=0)
    ax.set(**axes)
    if any(labels):
        ax.legend(title=legend, frameon=False)
    return ax


def _on_energies(ax, view, curves=None):
    """The axis of energy: as far as there are events, and shaded where they are few."""
    for k, (low, high) in enumerate(_joined(view.few)):
        label = f"fewer than {_FEW} events\nper 0.1 decade" if k == 0 else None
        ax.axvspan(max(low, view.low), min(high, view.high), color="0.9", lw=0, zorder=0, label=label)
    ax.set_xlim(view.low, view.high)
    log_energy_axis(ax.xaxis, view.low, view.high)
    if curves is not None and np.any(curves > 0):
        ax.set_ylim(np.min(curves[curves > 0]) / 3, np.max(curves) * 3)


def _joined(ranges):
    joined: list[tuple[float, float]] = []
    for low, high in ranges:
        if joined and np.isclose(joined[-1][1], low):
            joined[-1] = joined[-1][0], high
        else:
            joined.append((low, high))
    return joined


def plot_spectrum(model: RateModel, ax=None, offsets=None, cos_zeniths=None, view: View | None = None):
    """Rate against energy with the error of the fit: at offsets in deg, the mean over each ring; or, at the centre, at
    several cos zenith."""
    view = (View.of(model) if view is None else view).at(model, [np.nan] if cos_zeniths is None else cos_zeniths)
    energy = np.geomspace(view.low, view.high, 200)
    # the very edges are outside by rounding
    energy = np.clip(energy, *model.energy_edges[[0, -1]])
    axes = {"xscale": "log", "yscale": "log", "xlabel": "energy [TeV]", "ylabel": _RATE_LABEL}
    if cos_zeniths is not None:
        centre = np.zeros(1)
        rates = np.array([model.rate_grid(energy, centre, centre, z)[:, 0] for z in cos_zeniths])
        errors = [model.fit_error_grid(energy, centre, centre, z)[:, 0] for z in cos_zeniths]
        several = len(cos_zeniths) > 1
        labels = [f"{np.degrees(np.arccos(z)):.0f} deg" if several else "centre of the camera" for z in cos_zeniths]
        legend, title = ("zenith angle" if several else None), ("" if several else _at_zenith(model, cos_zeniths[0]))
    else:
        offsets = view.offset_max * np.array([0.1, 0.4, 0.75]) if offsets is None else np.atleast_1d(offsets)
        rates, zero = _ring_means(model, energy, offsets).T, np.zeros(len(offsets))
        errors = list(model.fit_error_grid(energy, offsets, zero, np.nan).T)
        labels, legend, title = [f"{theta:.2g} deg" for theta in offsets], "offset", _at_zenith(model)
    ax = _draw(ax, energy, rates, labels, legend, errors, title=title, **axes)
    _on_energies(ax, view, rates)
    ax.legend(title=legend, loc="upper right", fontsize="small", **_FRAME)
    return ax


def _draw_profiles(ax, model, energies, view, cos_zenith, relative, **axes):
    """Rate against offset at energies, the mean over each ring, with the error of the fit; and the curves."""
    offsets = np.linspace(0, view.offset_max, 121)
    rates = _ring_means(model, energies, offsets, cos_zenith)
    if relative:
        rates = rates / np.where(rates[:, :1] > 0, rates[:, :1], np.nan)
    errors = list(model.fit_error_grid(energies, offsets, np.zeros_like(offsets), cos_zenith))
    axes |= {"xlabel": "offset [deg]", "xlim": (0, view.offset_max), "title": _at_zenith(model, cos_zenith)}
    labels = [f"{energy:.2g} TeV" for energy in energies]
    return _draw(ax, offsets, rates, labels, None, errors, **axes), rates


def plot_radial(model: RateModel, energies, ax=None, view: View | None = None):
    """Rate against offset at energies in TeV, the mean over each ring, with the error of the fit."""
    view = View.of(model) if view is None else view
    scale = {"yscale": "log", "ylabel": _RATE_LABEL}
    ax, rates = _draw_profiles(ax, model, np.atleast_1d(energies), view, np.nan, False, **scale)
    if np.any(rates > 0):
        ax.set_ylim(np.min(rates[rates > 0]) / 2, np.max(rates) * 2)
    return ax


def plot_profile(model: RateModel, energies=None, ax=None, view: View | None = None, *, cos_zenith: float = np.nan):
    """Rate over its value at the centre against offset, the mean over each ring, with the error of the fit."""
    view = View.of(model) if view is None else view
    energies = view.at(model, [cos_zenith]).energies(3) if energies is None else np.atleast_1d(energies)
    ax, curves = _draw_profiles(ax, model, energies, view, cos_zenith, True, ylabel=_RELATIVE_LABEL)
    ax.set_ylim(0, 1.15 * np.nanmax(curves, initial=1.0))
    return ax


def plot_error(model: RateModel, cos_zenith: float = np.nan, ax=None, view: View | None = None):
    """Relative error in % of the rate of a run that the model is not adapted to, against energy at three offsets."""
    view = (View.of(model) if view is None else view).at(model, [cos_zenith])
    energy = np.clip(np.geomspace(view.low, view.high, 60), *model.energy_edges[[0, -1]])
    offsets = np.array([0, 0.4, 0.8]) * view.offset_max
    error = 100 * model.relative_error_grid(energy, offsets, np.zeros(3), cos_zenith).T
    error = np.where(error < np.inf, error, np.nan)
    axes = {"xscale": "log", "xlabel": "energy [TeV]", "ylabel": "error of the rate [%]"}
    labels = [f"{at:.1f} deg" for at in offsets]
    ax = _draw(ax, energy, error, labels, "offset", title=_at_zenith(model, cos_zenith), **axes)
    _on_energies(ax, view)
    # at the ends of the energies errors may be many times as large as elsewhere
    usual = np.nanquantile(error, 0.8) if np.isfinite(error).any() else 1.0
    ax.set_ylim(0, max(min(np.nanmax(error, initial=0.0), 4 * usual) * 1.05, 1.0))
    ax.legend(title="offset", fontsize="small", **_FRAME)
    return ax


def _pixels(view):
    x = np.linspace(-view.offset_max, view.offset_max, _N_PIXELS)
    lon, lat = np.meshgrid(x, x, indexing="ij")
    return x, lon, lat


def _image(ax, model, energy, x, values, label, cos_zenith, title, view, **scale):
    ax = plt.gca() if ax is None else ax
    image = ax.pcolormesh(x, x, values.T, shading="nearest", rasterized=True, **scale)
    bar = ax.figure.colorbar(image, ax=ax, label=label)
    bar.formatter.set_powerlimits((-2, 3))  # rates are small
    coarse = x[::4]
    lon, lat = np.meshgrid(coarse, coarse, indexing="ij")
    error = model.fit_error_grid(np.array([energy]), lon.ravel(), lat.ravel(), cos_zenith)[0].reshape(lon.shape)
    inside = view.inside(lon, lat)
    unsure = np.where(inside, np.minimum(error, 1e3), 0.0)
    share, remark = np.mean(unsure[inside] > _UNSURE), ""
    if share > _MOSTLY:
        remark = f"\nerror of the fit above {100 * _UNSURE:.0f} % nearly everywhere"
    elif share > 0:
        ax.contourf(coarse, coarse, unsure.T, levels=[_UNSURE, 1e4], hatches=["////"], colors="none")
        remark = f"\nhatched: error of the fit above {100 * _UNSURE:.0f} %"
    side = view.offset_max
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
    ax.set(xlim=(-side, side), ylim=(-side, side), title=title + remark)
    ax.locator_params(nbins=5)
    return ax


def _title(model, energy, cos_zenith):
    return ", ".join(filter(None, (f"{energy:.2g} TeV", _at_zenith(model, cos_zenith))))


def plot_rate_image(
    model: RateModel,
    energy: float,
    ax=None,
    *,
    cos_zenith: float = np.nan,
    relative: bool = False,
    view: View | None = None,
):
    """Image of the rate in the camera frame at an energy in TeV, or of the rate over its value at the centre."""
    view = View.of(model) if view is None else view
    x, lon, lat = _pixels(view)
    rate = model.rate_grid(np.array([energy]), lon.ravel(), lat.ravel(), cos_zenith)[0].reshape(lon.shape)
    centre = rate[len(x) // 2, len(x) // 2]
    scale = centre if relative and centre > 0 else 1.0
    values = np.where((rate > 0) & view.inside(lon, lat), rate / scale, np.nan)
    label, title = _RELATIVE_LABEL if relative else _RATE_LABEL, _title(model, energy, cos_zenith)
    return _image(ax, model, energy, x, values, label, cos_zenith, title, view, cmap=_RATE_MAP, vmin=0)


def plot_asymmetry(
    model: RateModel, energy: float, ax=None, *, cos_zenith: float = np.nan, view: View | None = None, beside=()
):
    """Image of how far the rate lies above or below the mean of its ring, in %, at an energy in TeV.

    ``beside``: energies in TeV that are drawn in other images, with the same colours.
    """
    view = View.of(model) if view is None else view
    energies = np.array([energy, *beside])
    x, lon, lat = _pixels(view)
    rate = model.rate_grid(energies, lon.ravel(), lat.ravel(), cos_zenith).reshape(-1, *lon.shape)
    offsets = np.linspace(0, np.hypot(lon, lat).max(), 4 * _N_PIXELS)
    of_rings = _ring_means(model, energies, offsets, cos_zenith)
    mean = np.array([np.interp(np.hypot(lon, lat), offsets, ring) for ring in of_rings])
    # a ring that leaves the square of the fit has a mean of what was fitted and of what goes on beyond it
    shown = (rate > 0) & (mean > 0) & (np.hypot(lon, lat) <= view.offset_max)
    values = np.where(shown, 100 * (rate / np.where(mean > 0, mean, 1) - 1), np.nan)
    limit = max(np.nanquantile(np.abs(values), 0.995) if shown.any() else 0.0, _LEAST_ASYMMETRY)
    label, title = "rate over the mean of its ring - 1 [%]", _title(model, energy, cos_zenith)
    scale = {"cmap": _DIFFERENCE_MAP, "vmin": -limit, "vmax": limit}
    return _image(ax, model, energy, x, values[0], label, cos_zenith, title, view, **scale)


def plot_model(model: RateModel, figsize=(12, 9), view: View | None = None, title: str = ""):
    """Spectrum, profile, image and asymmetry of the rate; returns the figure.

    Of a model that depends on the offset alone, its error is drawn in place of the asymmetry.
    """
    view = View.of(model) if view is None else view
    (energy,) = view.at(model, [np.nan]).energies(1)
    figure, axes = plt.subplots(2, 2, figsize=figsize, layout="constrained")
    plot_spectrum(model, axes[0, 0], view=view)
    plot_profile(model, ax=axes[0, 1], view=view)
    plot_rate_image(model, energy, axes[1, 0], relative=True, view=view)
    if model.is_radial:
        plot_error(model, ax=axes[1, 1], view=view)
    else:
        plot_asymmetry(model, energy, axes[1, 1], view=view)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure
