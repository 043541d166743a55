"""Pictures of a fitted model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from gammapy_accmaker.models.base import RateModel

__all__ = ["plot_model", "plot_profile", "plot_radial", "plot_rate_image", "plot_spectrum"]

RING_POSITIONS = 24
RATE_LABEL = r"rate [s$^{-1}$ MeV$^{-1}$ sr$^{-1}$]"


def _energies(model, n):
    """Energies in TeV, spread over the trained range but away from its ends."""
    low, high = np.log(model.energy_edges[[0, -1]])
    return np.exp(low + (high - low) * (np.arange(n) + 1) / (n + 1))


def _ring_means(model, energy, offsets):
    """Mean rate over rings, shape (energy, offset); offsets in deg."""
    angle = 2 * np.pi * (np.arange(RING_POSITIONS) + 0.5) / RING_POSITIONS
    theta = np.radians(offsets)[:, None]
    lon = np.degrees(np.arctan2(np.sin(theta) * np.cos(angle), np.cos(theta) * np.ones_like(angle)))
    lat = np.degrees(np.arcsin(np.sin(theta) * np.sin(angle)))
    rate = model.rate_grid(energy, lon.ravel(), lat.ravel(), model.middle_cos_zenith)
    return rate.reshape(len(energy), *lon.shape).mean(-1)


def plot_spectrum(model: RateModel, ax=None, offsets=None):
    """Rate against energy at offsets in deg, the mean over each ring; returns the axes."""
    ax = plt.gca() if ax is None else ax
    offsets = model.offset_max * np.array([0.1, 0.4, 0.7]) if offsets is None else np.atleast_1d(offsets)
    energy = np.geomspace(model.energy_edges[0], model.energy_edges[-1], 200)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(offsets)))
    for theta, rate, colour in zip(offsets, _ring_means(model, energy, offsets).T, colours, strict=True):
        ax.plot(energy, np.where(rate > 0, rate, np.nan), color=colour, label=f"offset {theta:.2g} deg")
    ax.set(xscale="log", yscale="log", xlabel="energy [TeV]", ylabel=RATE_LABEL)
    ax.legend()
    return ax


def plot_radial(model: RateModel, energies, ax=None):
    """Rate against offset at energies in TeV, the mean over each ring; returns the axes."""
    ax = plt.gca() if ax is None else ax
    energies, offsets = np.atleast_1d(energies), np.linspace(0, model.half_width, 121)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(energies)))
    for energy, rate, colour in zip(energies, _ring_means(model, energies, offsets), colours, strict=True):
        ax.plot(offsets, np.where(rate > 0, rate, np.nan), color=colour, label=f"{energy:.3g} TeV")
    ax.set(yscale="log", xlabel="offset [deg]", ylabel=RATE_LABEL)
    ax.legend()
    return ax


def plot_profile(model: RateModel, ax=None):
    """Rate over its value at the centre against FOV_LON, at three energies; returns the axes."""
    ax = plt.gca() if ax is None else ax
    lon = np.linspace(-model.offset_max, model.offset_max, 201)
    rate = model.rate_grid(_energies(model, 3), lon, np.zeros_like(lon), model.middle_cos_zenith)
    centre = rate[:, [len(lon) // 2]]
    for energy, row in zip(_energies(model, 3), rate / np.where(centre > 0, centre, np.nan), strict=True):
        ax.plot(lon, np.where(row > 0, row, np.nan), label=f"{energy:.2g} TeV")
    ax.set(xlabel="FOV_LON [deg]", ylabel="rate relative to the centre")
    ax.legend()
    return ax


def plot_rate_image(model: RateModel, energy: float, ax=None):
    """Image of the rate in the camera frame at an energy in TeV, with a colour bar; returns the axes."""
    ax = plt.gca() if ax is None else ax
    x = np.linspace(-model.half_width, model.half_width, 161)
    lon, lat = np.meshgrid(x, x, indexing="ij")
    rate = model.rate_grid(np.array([energy]), lon.ravel(), lat.ravel(), model.middle_cos_zenith)[0]
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
