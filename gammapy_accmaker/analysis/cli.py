"""Command line `gammapy-accmaker`: its commands, and the files that `gammapy-accmaker run` writes."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
from gammapy.utils import pbar
from matplotlib.figure import Figure

from gammapy_accmaker.acceptance.dl3 import HDU_INDEX, attach_background
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.acceptance.plan import plan_groups
from gammapy_accmaker.analysis.analysis import AcceptanceAnalysis, make_maker
from gammapy_accmaker.analysis.config import AcceptanceAnalysisConfig
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.template import commented_yaml
from gammapy_accmaker.errors import AcceptanceError, InputError
from gammapy_accmaker.simulation.demo import run_demo
from gammapy_accmaker.utils.files import check_free, write_atomically, write_folder_atomically
from gammapy_accmaker.validation.pictures import label_sky_axes
from gammapy_accmaker.validation.report import write_report

__all__ = ["cli"]

log = logging.getLogger(__name__)


MARKER = "datasets.yaml"  # tells a folder of results from others
MAPS = {"npred_excess": "excess", "sqrt_ts": "significance"}


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
    analysis.datasets.write(path / MARKER)
    analysis.config.write(path / "config.yaml")
    maker = analysis.acceptance_maker
    maker.model.write(path / "model.fits")
    maker.run_table.write(path / "run_table.ecsv")
    names = [MARKER, "config.yaml", "model.fits", "run_table.ecsv"]
    if len(analysis.datasets) != 1 or not analysis.datasets[0].tag.startswith("MapDataset"):
        log.warning("Excess and significance are of one map: use `datasets: {type: 3d, stack: true}` for them")
        return names
    analysis.get_excess_map()
    for quantity, name in MAPS.items():
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


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


class Commands(click.Group):
    """What a user can mend is told in one line, with exit code 1; wrong usage has exit code 2."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # who reads the output has seen enough: click ends without a word
            raise
        except (AcceptanceError, OSError) as error:
            log.debug("The error came from here", exc_info=True)
            raise click.ClickException(str(error)) from error


def parallel(command):
    return click.option(
        "--n-jobs", type=click.IntRange(min=1), help="Processes.  [default: that of the configuration]"
    )(command)


def overwriting(command):
    return click.option("--overwrite", is_flag=True, help="Replace an earlier output.")(command)


def writing(default, help_text, path_type=FILE):
    return click.option("--output", default=default, type=path_type, show_default=True, help=help_text)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
@click.option("--progress/--no-progress", default=None, help="Progress bars.  [default: on a terminal]")
@click.version_option(package_name="gammapy_accmaker")
def cli(log_level, progress):
    """Background models of imaging Cherenkov telescopes, for gammapy.

    CONFIG is a YAML file of gammapy's analysis with `method: acceptance` in `datasets.background`:
    `gammapy-accmaker config` prints one.
    """
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s")
    if log_level != "debug":
        warnings.simplefilter("ignore")
    pbar.SHOW_PROGRESS_BAR = sys.stderr.isatty() if progress is None else progress


@cli.command()
@writing("gammapy-accmaker-demo", "Folder of the results.", FOLDER)
@click.option("--n-jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@overwriting
def demo(output, n_jobs, overwrite):
    """Simulate runs, fit their background and compare with the truth (under a minute)."""
    mpl.use("Agg")
    start = time.monotonic()
    result = run_demo(output, n_jobs, overwrite)
    click.echo("\nBackground counts of all runs within the field of view:")
    click.echo("\n".join(result.table.pformat(max_lines=-1, max_width=-1)))
    mean, width = result.off_source
    click.echo(f"\nSource: {result.source_significance:.1f} sigma; off the source: mean {mean:+.2f}, width {width:.2f}")
    click.echo(f"{time.monotonic() - start:.0f} s. In {result.path}: model.fits, datasets.yaml, run_table.ecsv,")
    click.echo("truth_against_fit.ecsv, model.png, residuals.png, significance.png, and the runs in dl3")


@cli.command()
@writing(None, "File to write; printed otherwise.")
@overwriting
def config(output, overwrite):
    """Print a configuration with all its defaults, each explained."""
    parameters = AcceptanceConfig()
    background = {"method": "acceptance", "parameters": parameters.model_dump(mode="json")}
    options = AcceptanceAnalysisConfig.from_options({"datasets": {"background": background}})
    text = commented_yaml(options, {"datasets.background.parameters": parameters})
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomically(output, lambda path: path.write_text(text), overwrite)
        click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=FILE)
@writing(None, "Picture of the plan to write (png, pdf or svg).")
@parallel
@overwriting
def plan(config, output, n_jobs, overwrite):
    """Print which runs are pooled in a fit that has bins of zenith angle or azimuth."""
    if output is not None:
        check_free(output, overwrite)
    analysis = _read_analysis(config, n_jobs)
    maker = make_maker(analysis.config)
    analysis.get_observations()
    observations = analysis.observations if analysis.off_observations is None else analysis.off_observations
    groups = plan_groups(observations, maker.config, exclusion=maker.exclusion, n_jobs=analysis.config.general.n_jobs)
    click.echo(str(groups))
    if output is not None:
        figure = Figure(figsize=(7, 5), layout="constrained")
        groups.plot(figure.add_subplot())
        kind = output.suffix.lstrip(".") or "png"
        write_atomically(output, lambda path: figure.savefig(path, format=kind, dpi=150), overwrite)
        click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=FILE)
@writing("model.fits", "Model file to write.")
@parallel
@overwriting
def fit(config, output, n_jobs, overwrite):
    """Fit the acceptance to the runs that CONFIG selects, and write a model file."""
    check_free(output, overwrite)
    analysis = _read_analysis(config, n_jobs)
    if analysis.config.datasets.background.model is not None:
        raise InputError("datasets.background.model: it names a fitted model; leave it out to fit")
    maker = _fitted_maker(analysis)
    maker.model.write(output, overwrite=overwrite)
    click.echo(str(maker.model))
    click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=FILE)
@writing("datasets", "Folder of the results.", FOLDER)
@parallel
@overwriting
def run(config, output, n_jobs, overwrite):
    """Make the datasets of CONFIG with their background; of stacked maps, excess and significance too."""
    check_free(output, overwrite, holds=MARKER)
    analysis = _read_analysis(config, n_jobs)
    analysis.config.check_complete()
    analysis.get_observations()
    analysis.get_datasets()
    names = []
    write_folder_atomically(output, lambda path: names.extend(write_results(analysis, path)), overwrite, holds=MARKER)
    click.echo(f"In {output}: {', '.join(names)}")


@cli.command()
@click.argument("config", type=FILE)
@writing("dl3-with-background", "Folder of the new data store.", FOLDER)
@click.option("--copy", is_flag=True, help="Copy the runs in place of links to them.")
@parallel
@overwriting
def attach(config, output, copy, n_jobs, overwrite):
    """Write a data store of the runs that CONFIG selects, each with its background; the original is not changed."""
    if (output / HDU_INDEX).exists():
        check_free(output, overwrite, holds=HDU_INDEX)
    analysis = _read_analysis(config, n_jobs)
    maker = _fitted_maker(analysis)
    store = attach_background(
        analysis.datastore,
        maker,
        output,
        obs_ids=analysis.observations.ids,
        overwrite=overwrite,
        n_jobs=analysis.config.general.n_jobs,
        copy=copy,
    )
    with_background = np.sum(store.hdu_table["HDU_TYPE"] == "bkg")
    click.echo(f"{output} written: {with_background} of {len(store.obs_ids)} runs have a background")


@cli.command()
@click.argument("model", type=FILE)
def inspect(model):
    """Print what is in a model file: the model, its configuration, what its fit left out, and its runs."""
    found = AcceptanceModel.read(model)
    click.echo(str(found))
    click.echo("Configuration\n-------------\n")
    click.echo(found.config)
    click.echo(f"Exclusion\n---------\n\n{found.exclusion}\n")
    if found.plan is not None:
        click.echo(f"Plan\n----\n\n{found.plan}\n")
    click.echo("Runs\n----\n")
    click.echo("\n".join(found.run_table.pformat(max_lines=-1, max_width=-1)))
    described = (f"{c.name}: {c.description}" for c in found.run_table.columns.values() if c.description)
    click.echo("\nColumns\n-------\n\n" + "\n".join(described))


@cli.command()
@click.argument("config", type=FILE)
@writing("report.html", "Page to write.")
@click.option("--cross-validate", is_flag=True, help="Score the fit on runs left out of it; it takes several fits.")
@parallel
@overwriting
def report(config, output, cross_validate, n_jobs, overwrite):
    """Fit the acceptance, or read the model that CONFIG names, and write an HTML page about it."""
    check_free(output, overwrite)
    analysis = _read_analysis(config, n_jobs)
    maker = _fitted_maker(analysis)
    write_report(
        maker,
        analysis.observations,
        output,
        title=f"Background acceptance: {config.stem}",
        with_cross_validation=cross_validate,
        n_jobs=analysis.config.general.n_jobs,
        overwrite=overwrite,
    )
    click.echo(f"{output} written")


def _read_analysis(path, n_jobs):
    """The analysis of a configuration, checked as far as it can be before data are read."""
    options = AcceptanceAnalysisConfig.read(path)
    method = options.datasets.background.method
    if method != "acceptance":
        raise InputError(f"datasets.background.method: got {method!r}, but 'acceptance' is needed here")
    return AcceptanceAnalysis(options if n_jobs is None else options.update({"general": {"n_jobs": n_jobs}}))


def _fitted_maker(analysis):
    analysis.get_observations()
    if not len(analysis.observations):
        raise InputError("observations: none is selected; check `observations` of the configuration")
    return analysis.get_acceptance()
