"""Pictures of a fit: run effects, residuals in the camera frame and in the sky, significance, model images.

Each draws on the axes it is given, or on the current ones, and returns them. Rates are drawn in a perceptually uniform
colour scale, residuals in one that diverges around 0.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from gammapy.maps import Map

from gammapy_accmaker.camera.bins import FovBins, offset
from gammapy_accmaker.models.base import RateModel

__all__ = [
    "label_sky_axes",
    "plot_camera_residuals",
    "plot_model_error",
    "plot_model_image",
    "plot_run_effect",
    "plot_significance_histogram",
    "plot_sky_residuals",
    "plot_spectrum_by_zenith",
    "run_outliers",
]

RESIDUAL_MAP, RATE_MAP = "RdBu_r", "viridis"
SCORE_LIMIT = 4.0  # of the colour scale
OUTLIER = 4.0  # standard deviations
NAMED = 5  # outliers that are named in a picture
LABELS = {
    "NORM": "norm",
    "SHIFT": "shift of log energy",
    "MJD": "MJD [d]",
    "ZENITH": "zenith angle [deg]",
    "AZIMUTH": "azimuth [deg]",
    "MUONEFF": "muon efficiency",
    "COUNTS": "events",
    "DEVIANCE": "deviance [standard deviations]",
}


def run_outliers(run_table: Table, column: str) -> np.ndarray:
    """How far each run lies from the median of a column, in standard deviations: of the runs, from their median absolute
    deviation, and of the run itself, from the column of its error.

    Parameters
    ----------
    run_table : `~astropy.table.Table`
        Of a fit.
    column : str
        Such as ``NORM``.

    Returns
    -------
    deviation : `~numpy.ndarray`
        NaN where the run has no value.
    """
    values, errors = _values_and_errors(run_table, column)
    known = np.isfinite(values)
    if not known.any():
        return np.full(len(values), np.nan)
    center = np.median(values[known])
    scatter = 1.4826 * np.median(np.abs(values[known] - center))
    width = np.hypot(scatter, np.nan_to_num(errors))
    difference = values - center
    return np.where(width > 0, difference / np.where(width > 0, width, 1), np.where(known, 0.0, np.nan))


def _values_and_errors(run_table, column):
    values = np.asarray(run_table[column], dtype=float)
    error = f"{column}_ERR"
    errors = np.asarray(run_table[error], dtype=float) if error in run_table.colnames else np.zeros(len(values))
    return values, errors


def plot_run_effect(run_table: Table, column: str = "NORM", against: str = "MJD", ax=None):
    """Effect of each run with its error against another column; outliers of more than 4 standard deviations are named.

    Parameters
    ----------
    run_table : `~astropy.table.Table`
        Of a fit.
    column, against : str
        Columns of the table.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    values, errors = _values_and_errors(run_table, column)
    x, deviation = np.asarray(run_table[against], dtype=float), run_outliers(run_table, column)
    shown = np.isfinite(values) & np.isfinite(x)
    far = shown & (np.abs(deviation) > OUTLIER)
    for which, color in ((shown & ~far, "C0"), (far, "C3")):
        ax.errorbar(x[which], values[which], errors[which], fmt="o", ms=3.5, elinewidth=0.8, color=color, alpha=0.85)
    if shown.any():
        ax.axhline(np.median(values[shown]), color="0.5", lw=0.8, zorder=0)
    for k in sorted(np.flatnonzero(far), key=lambda k: -abs(deviation[k]))[:NAMED]:
        # the name is written towards the middle
        left = x[k] < 0.5 * (x[shown].min() + x[shown].max())
        where = {"xytext": (4 if left else -4, 4), "textcoords": "offset points", "ha": "left" if left else "right"}
        ax.annotate(str(run_table["OBS_ID"][k]), (x[k], values[k]), size="small", color="C3", **where)
    ax.ticklabel_format(axis="x", useOffset=False, style="plain")
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel=LABELS.get(against, against), ylabel=LABELS.get(column, column))
    return ax


def plot_camera_residuals(scores: np.ndarray, fov: FovBins, ax=None, *, colorbar: bool = True):
    """Significance of discs in the camera frame.

    Parameters
    ----------
    scores : `~numpy.ndarray`
        Shape ``fov.shape``; NaN is left grey.
    fov : `FovBins`
        Grid of pixels.
    ax : `~matplotlib.axes.Axes`, optional
    colorbar : bool
        Whether a colour bar is drawn.

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    limits = {"vmin": -SCORE_LIMIT, "vmax": SCORE_LIMIT}
    image = ax.pcolormesh(*fov.edges, np.reshape(scores, fov.shape).T, cmap=RESIDUAL_MAP, rasterized=True, **limits)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="significance", extend="both")
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
    return ax


def plot_sky_residuals(scores: Map, ax=None, *, colorbar: bool = True):
    """Significance of discs in the sky.

    Parameters
    ----------
    scores : `~gammapy.maps.Map`
        An image; NaN is left grey.
    ax : `~astropy.visualization.wcsaxes.WCSAxes`, optional
        Of the projection of the map.
    colorbar : bool
        Whether a colour bar is drawn.

    Returns
    -------
    ax : `~astropy.visualization.wcsaxes.WCSAxes`
    """
    ax = plt.subplot(projection=scores.geom.wcs) if ax is None else ax
    image = ax.imshow(
        np.squeeze(scores.data), origin="lower", cmap=RESIDUAL_MAP, vmin=-SCORE_LIMIT, vmax=SCORE_LIMIT
    )  # fmt: skip
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="significance", extend="both")
    ax.set(facecolor="0.85")
    label_sky_axes(ax, scores.geom)
    return ax


def label_sky_axes(ax, geom) -> None:
    """Name the coordinates of WCS axes after the frame of a geometry."""
    names = (
        ("Galactic longitude", "Galactic latitude") if geom.frame == "galactic" else ("right ascension", "declination")
    )
    for coordinate, name in zip(ax.coords, names, strict=True):
        coordinate.set_axislabel(name)


def plot_significance_histogram(scores: np.ndarray, ax=None, *, label: str | None = None):
    """Histogram of significances beside the standard normal distribution that pure background follows.

    Parameters
    ----------
    scores : `~numpy.ndarray`
        Of any shape; NaN is left out.
    ax : `~matplotlib.axes.Axes`, optional
    label : str, optional
        Put before mean and width in the legend.

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    scores = np.ravel(scores)
    scores = scores[np.isfinite(scores)]
    edges = np.linspace(-6, 6, 61)
    if len(scores):
        numbers = f"mean {scores.mean():+.2f}, width {scores.std():.2f}"
        text = numbers if label is None else f"{label}: {numbers}"
        ax.hist(np.clip(scores, -5.99, 5.99), edges, density=True, histtype="stepfilled", alpha=0.6, label=text)
    x = np.linspace(-6, 6, 241)
    ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color="0.2", lw=1.2, label="standard normal")
    ax.set(xlabel="significance", ylabel="density of discs", yscale="log", xlim=(-6, 6), ylim=(1e-4, 3))
    ax.legend(loc="upper center", frameon=False, fontsize="small")
    return ax


def plot_model_image(model: RateModel, energy: float, cos_zenith: float = np.nan, ax=None, *, colorbar: bool = True):
    """Rate over its value at the centre in the camera frame.

    Parameters
    ----------
    model : `RateModel`
    energy : float
        In TeV.
    cos_zenith : float
    ax : `~matplotlib.axes.Axes`, optional
    colorbar : bool
        Whether a colour bar is drawn.

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    x = np.linspace(-model.offset_max, model.offset_max, 121)
    lon, lat = (a.ravel() for a in np.meshgrid(x, x, indexing="ij"))
    rate = model.rate_grid(np.array([energy]), lon, lat, cos_zenith)[0]
    center = model.rate_grid(np.array([energy]), np.array([0.0]), np.array([0.0]), cos_zenith)[0, 0]
    seen = (rate > 0) & (offset(lon, lat) <= model.offset_max) & (center > 0)
    relative = np.where(seen, rate / (center if center > 0 else 1), np.nan).reshape(len(x), len(x))
    image = ax.pcolormesh(x, x, relative.T, cmap=RATE_MAP, vmin=0, shading="nearest", rasterized=True)
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="rate relative to the centre")
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
    return ax


def plot_spectrum_by_zenith(model: RateModel, cos_zeniths, ax=None):
    """Rate at the centre of the camera against energy, at several zenith angles.

    Parameters
    ----------
    model : `RateModel`
    cos_zeniths : list of float
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    energy, center = np.geomspace(model.energy_edges[0], model.energy_edges[-1], 200), np.zeros(1)
    colors = plt.get_cmap(RATE_MAP)(np.linspace(0.1, 0.8, len(cos_zeniths)))
    for cos_zenith, color in zip(cos_zeniths, colors, strict=True):
        rate = model.rate_grid(energy, center, center, cos_zenith)[:, 0]
        label = f"{np.degrees(np.arccos(cos_zenith)):.0f} deg" if len(cos_zeniths) > 1 else None
        ax.plot(energy, np.where(rate > 0, rate, np.nan), color=color, label=label)
    ax.set(xscale="log", yscale="log", xlabel="energy [TeV]", ylabel=r"rate [s$^{-1}$ MeV$^{-1}$ sr$^{-1}$]")
    if len(cos_zeniths) > 1:
        ax.legend(title="zenith angle", frameon=False)
    return ax


def plot_model_error(model: RateModel, cos_zenith: float = np.nan, ax=None):
    """Relative error of the rate against energy, at three offsets.

    Parameters
    ----------
    model : `RateModel`
    cos_zenith : float
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    energy = np.geomspace(model.energy_edges[0], model.energy_edges[-1], 62)[1:-1]
    offsets = np.array([0, 0.4, 0.8]) * model.offset_max
    error = model.relative_error_grid(energy, offsets, np.zeros(3), cos_zenith)
    colors = plt.get_cmap(RATE_MAP)(np.linspace(0.1, 0.8, len(offsets)))
    for at, row, color in zip(offsets, error.T, colors, strict=True):
        ax.plot(energy, 100 * np.where(np.isfinite(row) & (row > 0), row, np.nan), color=color, label=f"{at:.1f} deg")
    ax.set(xscale="log", xlabel="energy [TeV]", ylabel="error of the rate [%]", ylim=(0, None))
    ax.legend(title="offset", frameon=False)
    return ax
