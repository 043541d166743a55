"""What `gammapy-accmaker run` writes: datasets, model and run table, and pictures of excess and significance."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from gammapy_accmaker.utils.run_key import named_by_run
from gammapy_accmaker.validation.pictures import label_sky_axes

log = logging.getLogger(__name__)

MARKER = "datasets.yaml"  # tells a folder of results from others
_MAPS = {"npred_excess": "excess", "sqrt_ts": "significance"}


def write_results(analysis, path: Path) -> list[str]:
    """Write datasets, model, run table and configuration of an analysis, and the excess and significance of its maps.

    Parameters
    ----------
    analysis : `~gammapy_accmaker.AcceptanceAnalysis`
        With datasets.
    path : `~pathlib.Path`
        An empty folder.

    Returns
    -------
    names : list of str
        Of the files, those of single datasets left out.
    """
    datasets = analysis.datasets
    (datasets if analysis.config.datasets.stack else named_by_run(datasets)).write(path / MARKER)
    analysis.config.write(path / "config.yaml")
    maker = analysis.acceptance_maker
    maker.model.write(path / "model.fits")
    maker.run_table.write(path / "run_table.ecsv")
    names = [MARKER, "config.yaml", "model.fits", "run_table.ecsv"]
    if len(analysis.datasets) != 1 or not analysis.datasets[0].tag.startswith("MapDataset"):
        if analysis.config.datasets.type == "3d":
            log.warning("Excess and significance are of one map: use `datasets: {stack: true}` for them")
        return names
    analysis.get_excess_map()
    for quantity, name in _MAPS.items():
        image = analysis.excess_map[quantity]
        image.write(path / f"{name}.fits")
        _save_picture(image, name, path / f"{name}.png")
        names += [f"{name}.fits", f"{name}.png"]
    return names


def _save_picture(image, name, path):
    """A panel for each energy bin."""
    axis = image.geom.axes[0]
    with mpl.rc_context({"font.size": 10}):
        figure = Figure(figsize=(1 + 4.6 * axis.nbin, 4.4), layout="constrained")
        for k in range(axis.nbin):
            panel = image.slice_by_idx({axis.name: k})
            ax = figure.add_subplot(1, axis.nbin, k + 1, projection=panel.geom.wcs)
            _draw(panel.data, name, ax, figure)
            low, high = axis.edges[k : k + 2].to_value("TeV")
            label_sky_axes(ax, panel.geom)
            ax.set_title(f"{low:.3g} to {high:.3g} TeV")
        figure.savefig(path, dpi=120)


def _draw(values, name, ax, figure):
    finite = values[np.isfinite(values)]
    limit = 5.0 if name == "significance" else max(np.percentile(np.abs(finite), 99.5, method="lower"), 1e-9)
    shown = ax.imshow(values, origin="lower", vmin=-limit, vmax=limit, cmap="RdBu_r")
    figure.colorbar(
        shown, ax=ax, label=f"{name} [sigma]" if name == "significance" else f"{name} [counts]", extend="both"
    )
    ax.set(facecolor="0.85")
