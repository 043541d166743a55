"""Pictures of a fitted model. Each draws on the axes it is given, or on the current ones, and returns them.

Without a zenith angle a model is drawn at the middle of its trained range. Rates are drawn in a perceptually uniform
colour scale.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from gammapy_accmaker.models.base import RateModel

__all__ = ["plot_error", "plot_model", "plot_radial", "plot_rate_image", "plot_spectrum"]

RATE_MAP = "viridis"
RATE_LABEL = r"rate [s$^{-1}$ MeV$^{-1}$ sr$^{-1}$]"
RING_POSITIONS = 24


def _energies(model, n):
    """Energies in TeV, spread over the trained range but away from its ends."""
    return np.geomspace(model.energy_edges[0], model.energy_edges[-1], n + 2)[1:-1]


def _ring_means(model, energy, offsets, cos_zenith=np.nan):
    """Mean rate over rings, shape (energy, offset); offsets in deg."""
    angle = 2 * np.pi * (np.arange(RING_POSITIONS) + 0.5) / RING_POSITIONS
    theta = np.radians(offsets)[:, None]
    lon = np.degrees(np.arctan2(np.sin(theta) * np.cos(angle), np.cos(theta) * np.ones_like(angle)))
    lat = np.degrees(np.arcsin(np.sin(theta) * np.sin(angle)))
    rate = model.rate_grid(energy, lon.ravel(), lat.ravel(), cos_zenith)
    return rate.reshape(len(energy), *lon.shape).mean(-1)


def _draw(ax, x, curves, labels, title=None, **axes):
    """Curves, shape (len(labels), len(x)), with gaps where they are not > 0."""
    ax = plt.gca() if ax is None else ax
    colours = plt.get_cmap(RATE_MAP)(np.linspace(0, 0.85, len(labels)))
    for curve, label, colour in zip(curves, labels, colours, strict=True):
        ax.plot(x, np.where(curve > 0, curve, np.nan), color=colour, label=label)
    ax.set(**axes)
    if any(labels):
        ax.legend(title=title, frameon=False)
    return ax


def plot_spectrum(model: RateModel, ax=None, offsets=None, cos_zeniths=None):
    """Rate against energy at offsets in deg, the mean over each ring; or, at the centre, at several cos zenith."""
    energy = np.geomspace(model.energy_edges[0], model.energy_edges[-1], 200)
    axes = {"xscale": "log", "yscale": "log", "xlabel": "energy [TeV]", "ylabel": RATE_LABEL}
    if cos_zeniths is not None:
        rates = [model.rate_grid(energy, np.zeros(1), np.zeros(1), z)[:, 0] for z in cos_zeniths]
        labels = [f"{np.degrees(np.arccos(z)):.0f} deg" if len(cos_zeniths) > 1 else None for z in cos_zeniths]
        return _draw(ax, energy, rates, labels, "zenith angle", **axes)
    offsets = model.offset_max * np.array([0.1, 0.4, 0.7]) if offsets is None else np.atleast_1d(offsets)
    rates = _ring_means(model, energy, offsets).T
    return _draw(ax, energy, rates, [f"{theta:.2g} deg" for theta in offsets], "offset", **axes)


def plot_radial(model: RateModel, energies, ax=None):
    """Rate against offset at energies in TeV, the mean over each ring."""
    energies, offsets = np.atleast_1d(energies), np.linspace(0, model.half_width, 121)
    labels = [f"{energy:.3g} TeV" for energy in energies]
    rates = _ring_means(model, energies, offsets)
    return _draw(ax, offsets, rates, labels, yscale="log", xlabel="offset [deg]", ylabel=RATE_LABEL)


def _plot_profile(model, ax):
    """Rate over its value at the centre against FOV_LON, at three energies."""
    energies, lon = _energies(model, 3), np.linspace(-model.offset_max, model.offset_max, 201)
    rate = model.rate_grid(energies, lon, np.zeros_like(lon), np.nan)
    centre = rate[:, [len(lon) // 2]]
    curves, labels = rate / np.where(centre > 0, centre, np.nan), [f"{energy:.2g} TeV" for energy in energies]
    return _draw(ax, lon, curves, labels, xlabel="FOV_LON [deg]", ylabel="rate relative to the centre")


def plot_error(model: RateModel, cos_zenith: float = np.nan, ax=None):
    """Relative error of the rate in % against energy, at three offsets."""
    energy, offsets = _energies(model, 60), np.array([0, 0.4, 0.8]) * model.offset_max
    error = 100 * model.relative_error_grid(energy, offsets, np.zeros(3), cos_zenith).T
    axes = {"xscale": "log", "xlabel": "energy [TeV]", "ylabel": "error of the rate [%]", "ylim": (0, None)}
    return _draw(
        ax, energy, np.where(error < np.inf, error, np.nan), [f"{at:.1f} deg" for at in offsets], "offset", **axes
    )


def plot_rate_image(model: RateModel, energy: float, ax=None, *, cos_zenith: float = np.nan, relative: bool = False):
    """Image of the rate in the camera frame at an energy in TeV, or of the rate over its value at the centre."""
    ax = plt.gca() if ax is None else ax
    x = np.linspace(-model.half_width, model.half_width, 161)
    lon, lat = np.meshgrid(x, x, indexing="ij")
    rate = model.rate_grid(np.array([energy]), lon.ravel(), lat.ravel(), cos_zenith)[0].reshape(lon.shape)
    scale = rate[len(x) // 2, len(x) // 2] if relative else 1.0
    values = np.where((rate > 0) & (scale > 0), rate / (scale if scale > 0 else 1.0), np.nan)
    lowest = 0 if relative else None
    image = ax.pcolormesh(x, x, values.T, cmap=RATE_MAP, vmin=lowest, shading="nearest", rasterized=True)
    ax.figure.colorbar(image, ax=ax, label="rate relative to the centre" if relative else RATE_LABEL)
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
    if not relative:
        ax.set_title(f"{energy:.2g} TeV")
    return ax


def plot_model(model: RateModel, figsize=(12, 8)):
    """Spectrum, profile and two images of the rate; returns the figure."""
    figure, axes = plt.subplots(2, 2, figsize=figsize, layout="constrained")
    plot_spectrum(model, axes[0, 0])
    _plot_profile(model, axes[0, 1])
    for energy, ax in zip(_energies(model, 2), axes[1], strict=True):
        plot_rate_image(model, energy, ax)
    return figure
