"""Pictures of how well a fit describes its runs: run effects, residuals in the camera frame and in the sky,
significance.

Each draws on the axes it is given, or on the current ones, and returns them. Residuals are drawn in a colour scale that
diverges around 0. The pictures of the model itself are in `~gammapy_accmaker.products.plots`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from gammapy.maps import Map
from matplotlib.ticker import MaxNLocator

from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.products.plots import log_energy_axis

_RESIDUAL_MAP = "RdBu_r"
_SCORE_LIMIT = 4.0  # of the colour scale
OUTLIER = 4.0  # standard deviations
_LEAST_IN_RATIO = 1.0  # events expected in a bin, of which the ratio to the model is drawn
_NAMED = 5  # outliers that are named in a picture
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
    """How far each run lies from the median of a column, in standard deviations: of the runs, from their median
    absolute deviation, and of the run itself, from the column of its error.

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
    for k in sorted(np.flatnonzero(far), key=lambda k: -abs(deviation[k]))[:_NAMED]:
        # the name is written towards the middle
        left = x[k] < 0.5 * (x[shown].min() + x[shown].max())
        where = {"xytext": (4 if left else -4, 4), "textcoords": "offset points", "ha": "left" if left else "right"}
        ax.annotate(str(run_table["OBS_ID"][k]), (x[k], values[k]), size="small", color="C3", **where)
    ax.ticklabel_format(axis="x", useOffset=False, style="plain")
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel=LABELS.get(against, against), ylabel=LABELS.get(column, column))
    return ax


def plot_camera_residuals(scores: np.ndarray, fov: FovBins, ax=None):
    """Significance of discs in the camera frame.

    Parameters
    ----------
    scores : `~numpy.ndarray`
        Shape ``fov.shape``; NaN is left grey.
    fov : `FovBins`
        Grid of pixels.
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    limits = {"vmin": -_SCORE_LIMIT, "vmax": _SCORE_LIMIT}
    image = ax.pcolormesh(*fov.edges, np.reshape(scores, fov.shape).T, cmap=_RESIDUAL_MAP, rasterized=True, **limits)
    ax.figure.colorbar(image, ax=ax, label="significance [sigma]", extend="both")
    ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
    return ax


def plot_sky_residuals(scores: Map, ax=None):
    """Significance of discs in the sky.

    Parameters
    ----------
    scores : `~gammapy.maps.Map`
        An image; NaN is left grey.
    ax : `~astropy.visualization.wcsaxes.WCSAxes`, optional
        Of the projection of the map.

    Returns
    -------
    ax : `~astropy.visualization.wcsaxes.WCSAxes`
    """
    ax = plt.subplot(projection=scores.geom.wcs) if ax is None else ax
    image = ax.imshow(
        np.squeeze(scores.data), origin="lower", cmap=_RESIDUAL_MAP, vmin=-_SCORE_LIMIT, vmax=_SCORE_LIMIT
    )  # fmt: skip
    ax.figure.colorbar(image, ax=ax, label="significance [sigma]", extend="both")
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


def plot_significance_histogram(scores, ax=None, *, label=None):
    """Histogram of significances beside the standard normal distribution that pure background follows.

    Parameters
    ----------
    scores : `~numpy.ndarray` or list of `~numpy.ndarray`
        Of any shape; NaN is left out. Those of a list are drawn over each other.
    ax : `~matplotlib.axes.Axes`, optional
    label : str or list of str, optional
        Put before mean and width in the legend.

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    several = isinstance(scores, list)
    labels = label if several and label is not None else [label] * (len(scores) if several else 1)
    edges = np.linspace(-6, 6, 61)
    style = {"histtype": "step", "lw": 1.4} if several else {"histtype": "stepfilled", "alpha": 0.6}
    for values, name in zip(scores if several else [scores], labels, strict=True):
        values = np.ravel(values)
        values = values[np.isfinite(values)]
        if len(values):
            numbers = f"mean {values.mean():+.2f}, width {values.std():.2f}"
            text = numbers if name is None else f"{name}: {numbers}"
            ax.hist(np.clip(values, -5.99, 5.99), edges, density=True, label=text, **style)
    x = np.linspace(-6, 6, 241)
    ax.plot(x, np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi), color="0.2", lw=1.2, label="standard normal")
    # above the curves there is room for a line of each
    top = 3.0 * 10 ** (0.45 * max(len(labels) - 1, 0))
    ax.set(xlabel="significance [sigma]", ylabel="density of discs", yscale="log", xlim=(-6, 6), ylim=(1e-4, top))
    ax.legend(loc="upper center", frameon=False, fontsize="x-small" if several else "small")
    return ax


def plot_counts_by_energy(edges: np.ndarray, counts: np.ndarray, expected: np.ndarray, ax=None):
    """Counts and their expectation by energy bin.

    Parameters
    ----------
    edges : `~numpy.ndarray`, shape (n + 1,)
        In TeV.
    counts, expected : `~numpy.ndarray`, shape (n,)
    ax : `~matplotlib.axes.Axes`, optional

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    middle, seen = np.sqrt(edges[1:] * edges[:-1]), counts > 0
    ax.stairs(np.where(expected > 0, expected, np.nan), edges, color="C1", lw=1.5, label="model")
    ax.errorbar(middle[seen], counts[seen], np.sqrt(counts[seen]), fmt="o", ms=3.5, color="C0", label="events")
    ax.set(xscale="log", yscale="log", xlabel="energy [TeV]", ylabel="events in a bin")
    ax.set_ylim(bottom=0.5)
    _to_events(ax, edges, counts)
    ax.legend(frameon=False)
    return ax


def plot_ratio_by_energy(edges: np.ndarray, counts: np.ndarray, expected: np.ndarray, ax=None):
    """How far the counts lie above the expectation in % with their Poisson error, by energy bin; arguments as in
    `plot_counts_by_energy`."""
    ax = plt.gca() if ax is None else ax
    middle, seen = np.sqrt(edges[1:] * edges[:-1]), expected >= _LEAST_IN_RATIO
    excess, error = 100 * (counts[seen] / expected[seen] - 1), 100 / np.sqrt(expected[seen])
    ax.errorbar(middle[seen], excess, error, fmt="o", ms=3.5, color="C0")
    ax.axhline(0, color="0.5", lw=0.8, zorder=0)
    ax.set(xscale="log", xlabel="energy [TeV]", ylabel="events over model - 1 [%]")
    _to_events(ax, edges, counts)
    _around_zero(ax, excess, error)
    return ax


def plot_ratio_by_run(names, counts: np.ndarray, expected: np.ndarray, ax=None, *, labels=None):
    """How far the counts of each run lie above their expectation in % with their Poisson error; those of more than 4
    standard deviations are named.

    Parameters
    ----------
    names : list
        Of the runs.
    counts, expected : `~numpy.ndarray`, shape (n_run,) or (n_series, n_run)
        Of each run, in the order in which they are drawn; of several parts of the energies.
    ax : `~matplotlib.axes.Axes`, optional
    labels : list of str, optional
        Of the series.

    Returns
    -------
    ax : `~matplotlib.axes.Axes`
    """
    ax = plt.gca() if ax is None else ax
    counts, expected = np.atleast_2d(counts, expected)
    labels = [None] * len(counts) if labels is None else labels
    seen = expected >= _LEAST_IN_RATIO
    safe = np.where(seen, expected, 1)
    excess, error = np.where(seen, 100 * (counts / safe - 1), np.nan), 100 / np.sqrt(safe)
    # beside each other
    x = np.arange(1, counts.shape[1] + 1) + 0.12 * (np.arange(len(counts)) - 0.5 * (len(counts) - 1))[:, None]
    for k, label in enumerate(labels):
        ax.errorbar(x[k], excess[k], error[k], fmt="o", ms=3.5, elinewidth=0.8, color=f"C{k}", label=label)
    deviation = np.nan_to_num(excess / error)
    far = np.argwhere(np.abs(deviation) > OUTLIER).tolist()
    for k, run in sorted(far, key=lambda at: -abs(deviation[tuple(at)]))[:_NAMED]:
        where = {"xytext": (4, 4), "textcoords": "offset points", "size": "small", "color": "C3"}
        ax.annotate(str(names[run]), (x[k, run], excess[k, run]), **where)
    ax.axhline(0, color="0.5", lw=0.8, zorder=0)
    ax.set(xlabel="run, in the order of time", ylabel="events over model - 1 [%]", xlim=(0, counts.shape[1] + 1))
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _around_zero(ax, excess[seen], error[seen])
    if any(labels):
        ax.legend(frameon=False, fontsize="small", ncols=2, loc="upper center")
    return ax


def _around_zero(ax, excess, error):
    """As much above zero as below; errors larger than that of all points together do not set the scale."""
    if len(excess):
        reach = np.max(np.abs(excess) + np.minimum(error, 3 * np.median(error)))
        ax.set_ylim(-1.2 * reach, 1.2 * reach)


def _to_events(ax, edges, counts):
    seen = np.flatnonzero(counts)
    if len(seen):
        low, high = edges[seen[0]], edges[seen[-1] + 1]
        ax.set_xlim(low, high)
        log_energy_axis(ax.xaxis, low, high)
