"""Pictures of a fitted model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from gammapy_accmaker.models.base import RateModel

__all__ = ["plot_model", "plot_profile", "plot_rate_image", "plot_spectrum"]

RATE_LABEL = r"rate [s$^{-1}$ MeV$^{-1}$ sr$^{-1}$]"


def _representative_cos_zenith(model):
    return 1.0 if model.zenith_range is None else float(np.mean(model.zenith_range))


def _energies(model, n):
    """Energies in TeV, spread over the trained range but away from its ends."""
    low, high = np.log(model.energy_edges[[0, -1]])
    return np.exp(low + (high - low) * (np.arange(n) + 1) / (n + 1))


def plot_spectrum(model: RateModel, ax=None):
    """Rate against energy at three offsets; returns the axes."""
    ax = plt.gca() if ax is None else ax
    energy = np.geomspace(*model.energy_edges[[0, -1]], 200)
    for fraction in (0.1, 0.4, 0.7):
        offset = fraction * model.offset_max
        rate = model.rate_grid(energy, np.array([offset]), np.zeros(1), _representative_cos_zenith(model))[:, 0]
        ax.plot(energy, np.where(rate > 0, rate, np.nan), label=f"FOV_LON {offset:.1f} deg")
    ax.set(xscale="log", yscale="log", xlabel="energy [TeV]", ylabel=RATE_LABEL)
    ax.legend()
    return ax


def plot_profile(model: RateModel, ax=None):
    """Rate over its value at the centre against FOV_LON, at three energies; returns the axes."""
    ax = plt.gca() if ax is None else ax
    lon = np.linspace(-model.offset_max, model.offset_max, 201)
    rate = model.rate_grid(_energies(model, 3), lon, np.zeros_like(lon), _representative_cos_zenith(model))
    centre = rate[:, [len(lon) // 2]]
    for energy, row in zip(_energies(model, 3), rate / np.where(centre > 0, centre, np.nan), strict=True):
        ax.plot(lon, np.where(row > 0, row, np.nan), label=f"{energy:.2g} TeV")
    ax.set(xlabel="FOV_LON [deg]", ylabel="rate relative to the centre")
    ax.legend()
    return ax


def plot_rate_image(model: RateModel, energy: float, ax=None):
    """Image of the rate in the camera frame at an energy in TeV, with a colour bar; returns the axes."""
    ax = plt.gca() if ax is None else ax
    x = np.linspace(-model.offset_max, model.offset_max, 161)
    lon, lat = np.meshgrid(x, x, indexing="ij")
    rate = model.rate_grid(np.array([energy]), lon.ravel(), lat.ravel(), _representative_cos_zenith(model))[0]
    rate = np.where(rate > 0, rate, np.nan).reshape(lon.shape)
    image = ax.pcolormesh(x, x, rate.T, cmap="viridis", shading="nearest", rasterized=True)
    ax.figure.colorbar(image, ax=ax, label=RATE_LABEL)
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", title=f"{energy:.2g} TeV", aspect="equal")
    return ax


def plot_model(model: RateModel, figsize=(12, 8)):
    """Spectrum, profile and two images of the rate; returns the figure."""
    figure, axes = plt.subplots(2, 2, figsize=figsize, layout="constrained")
    plot_spectrum(model, axes[0, 0])
    plot_profile(model, axes[0, 1])
    for energy, ax in zip(_energies(model, 2), axes[1], strict=True):
        plot_rate_image(model, energy, ax)
    return figure
