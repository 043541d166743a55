"""What `gammapy-accmaker demo` runs: simulate, fit, fill datasets, and hold the result against the known truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import astropy.units as u
import matplotlib.pyplot as plt
import numpy as np
from astropy.table import Table
from gammapy.data import DataStore
from gammapy.datasets import Datasets, MapDataset
from gammapy.estimators import ExcessMapEstimator
from gammapy.makers import DatasetsMaker, MapDatasetMaker, SafeMaskMaker
from gammapy.maps import Map, MapAxis, WcsGeom
from regions import CircleSkyRegion

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.simulation.store import SimulatedStore, simulate_data_store
from gammapy_accmaker.utils.files import write_folder_atomically
from gammapy_accmaker.utils.run_key import named_by_run
from gammapy_accmaker.validation.pictures import plot_significance_histogram, plot_sky_residuals
from gammapy_accmaker.validation.stacks import expected_in_camera

MARKER = "truth_against_fit.ecsv"  # tells a folder of a demo from others
_SOURCE_RADIUS = 0.4 * u.deg
_OFFSET_MAX = 2.5 * u.deg
_LIMIT = 10  # %, of the colours of fit over truth
_BANDS = np.geomspace(0.2, 20, 9)  # TeV, of the table and the pictures


@dataclass(frozen=True)
class DemoResult:
    """Folder of the outputs, and the table of truth against fit."""

    path: Path
    table: Table
    source_significance: float
    off_source: tuple[float, float]


def run_demo(path, n_jobs: int | None = None, overwrite: bool = False) -> DemoResult:
    """Simulate a data store, fit its background, and write model, datasets, run table and pictures.

    Parameters
    ----------
    path : str or `~pathlib.Path`
        Output folder; it is made.
    n_jobs : int, optional
        Processes.
    overwrite : bool
        Replace the output of an earlier demo in this folder.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[DemoResult] = []
    # a demo that is interrupted leaves nothing that would be in the way of the next one
    write_folder_atomically(path, lambda folder: found.append(_make_demo(folder, n_jobs)), overwrite, MARKER)
    return replace(found[0], path=path)


def _make_demo(path: Path, n_jobs) -> DemoResult:
    store = simulate_data_store(path / "dl3")
    data_store = DataStore.from_dir(path / "dl3")
    observations = data_store.get_observations(required_irf=["aeff", "edisp", "psf"])
    assert store.source is not None  # it was asked for
    source = CircleSkyRegion(store.source.spatial_model.position, _SOURCE_RADIUS)

    maker = AcceptanceBackgroundMaker(AcceptanceConfig(offset_max=_OFFSET_MAX), exclusion=[source])
    maker.fit(observations, n_jobs=n_jobs)
    datasets = _make_datasets(maker, observations[[str(obs_id) for obs_id in store.on_obs_ids]], source, n_jobs)

    maker.model.write(path / "model.fits")
    datasets.write(path / "datasets.yaml")
    maker.run_table.write(path / "run_table.ecsv")
    truth, fit = _in_camera(store, maker, observations)
    table = _truth_against_fit(truth, fit)
    table.write(path / MARKER)

    _save(maker.model.peek(), path / "model.png")
    _save(_plot_residuals(truth, fit), path / "residuals.png")
    significance, figure, off_source = _plot_significance(datasets, source)
    _save(figure, path / "significance.png")
    return DemoResult(path, table, significance, off_source)


def _make_datasets(maker, observations, source, n_jobs) -> Datasets:
    energy = MapAxis.from_energy_bounds("0.5 TeV", "20 TeV", nbin=6, per_decade=True)
    energy_true = MapAxis.from_energy_bounds("0.2 TeV", "50 TeV", nbin=8, per_decade=True, name="energy_true")
    geom = WcsGeom.create(skydir=source.center, width=4 * u.deg, binsz=0.04 * u.deg, axes=[energy])
    reference = MapDataset.create(geom, energy_axis_true=energy_true, name="reference")
    makers = [
        MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"]),
        SafeMaskMaker(methods=["offset-max"], offset_max=_OFFSET_MAX),
        maker,
    ]
    return named_by_run(DatasetsMaker(makers, stack_datasets=False, n_jobs=n_jobs).run(reference, observations))


def _camera_bins():
    return FovBins.grid(_OFFSET_MAX.to_value("deg"), 25)


def _in_camera(store: SimulatedStore, maker, observations):
    """Expected counts of truth and fit, summed over runs, shape (energy, fov_lon, fov_lat)."""
    fov = _camera_bins()
    truth = fit = np.zeros(())
    for observation in observations:
        truth = truth + store.expected_counts(observation.obs_id, _BANDS, *fov.edges)
        track = observation_track(observation, "altaz")
        fit = fit + expected_in_camera(maker.adapt(observation), track, _BANDS, fov).reshape(-1, *fov.shape)
    return truth, fit


def _inside():
    lon, lat = np.meshgrid(*_camera_bins().centers, indexing="ij")
    return np.hypot(lon, lat) < _OFFSET_MAX.to_value("deg") - 0.1


def _truth_against_fit(truth, fit) -> Table:
    truth, fit = truth[:, _inside()].sum(1), fit[:, _inside()].sum(1)
    table = Table(
        {
            "E_MIN": _BANDS[:-1] * u.TeV,
            "E_MAX": _BANDS[1:] * u.TeV,
            "TRUTH": truth,
            "FIT": fit,
            "FIT/TRUTH": fit / truth,
            "PULL": (fit - truth) / np.sqrt(truth),
        }
    )
    for name, form in {
        "E_MIN": ".2f",
        "E_MAX": ".2f",
        "TRUTH": ".0f",
        "FIT": ".0f",
        "FIT/TRUTH": ".4f",
        "PULL": "+.2f",
    }.items():
        table[name].format = form
    return table


def _plot_residuals(truth, fit):
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.8), layout="constrained")
    edges = _camera_bins().edges
    # from the threshold upwards, in three bands with counts enough for a picture
    for ax, part in zip(axes, (slice(0, 2), slice(2, 4), slice(4, 8)), strict=True):
        ratio = np.where(_inside(), fit[part].sum(0) / truth[part].sum(0) - 1, np.nan)
        image = ax.pcolormesh(*edges, 100 * ratio.T, cmap="RdBu_r", vmin=-_LIMIT, vmax=_LIMIT, rasterized=True)
        bins = np.arange(len(_BANDS) - 1)[part]
        ax.set(xlabel="FOV_LON [deg]", ylabel="FOV_LAT [deg]", aspect="equal", facecolor="0.85")
        ax.set_title(f"{_BANDS[bins[0]]:.2g} to {_BANDS[bins[-1] + 1]:.2g} TeV, rms {100 * np.nanstd(ratio):.1f} %")
    figure.colorbar(image, ax=axes, label="fit / truth - 1 [%]", extend="both")
    return figure


def _plot_significance(datasets, source):
    stacked = datasets.stack_reduce(name="stacked")
    result = ExcessMapEstimator("0.1 deg", selection_optional=[]).run(stacked)
    image = result["sqrt_ts"].sum_over_axes(keepdims=False) if result["sqrt_ts"].geom.axes else result["sqrt_ts"]
    geom = image.geom.to_image()
    values = np.squeeze(image.data)
    outside = ~geom.region_mask([source], inside=True).data
    inside_fov = geom.separation(source.center) < 1.8 * u.deg
    off = values[outside & inside_fov & np.isfinite(values)]
    figure = plt.figure(figsize=(12, 5), layout="constrained")
    ax = figure.add_subplot(1, 2, 1, projection=geom.wcs)
    plot_sky_residuals(Map.from_geom(geom, data=values), ax)
    ax.set_title("significance in discs of 0.1 deg, 0.5 to 20 TeV")
    plot_significance_histogram(off, figure.add_subplot(1, 2, 2), label="off source")
    return float(values[~outside].max()), figure, (float(off.mean()), float(off.std()))


def _save(figure, path):
    figure.savefig(path, dpi=120)
    plt.close(figure)
