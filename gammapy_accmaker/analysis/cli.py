"""Command line `gammapy-accmaker`.

Each command imports what it needs when it runs: help, version and wrong usage are answered without gammapy.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path

import click

from gammapy_accmaker.errors import AcceptanceError, InputError

log = logging.getLogger(__name__)


# what `gammapy-accmaker config` prints is an analysis of it
_CRAB = {"frame": "icrs", "lon": "83.633 deg", "lat": "22.014 deg"}
_HEADER = """\
# An analysis of the Crab nebula in the data of H.E.S.S. DL3 DR1, which gammapy's tutorials use ($GAMMAPY_DATA).
# Put your own in place of the data store, the choice of runs and the centre of the map. Sources are looked for in the
# data and left out of the fit (exclusion.iterative); the regions of known ones are better, as a file for
# datasets.background.exclusion.

"""

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


class _Command(click.Command):
    """What a user can mend is told in one line, with exit code 1; wrong usage has exit code 2."""

    def invoke(self, ctx):
        from gammapy.utils import pbar

        progress = ctx.find_root().params["progress"]
        pbar.SHOW_PROGRESS_BAR = sys.stderr.isatty() if progress is None else progress
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # who reads the output has seen enough: click ends without a word
            raise
        except (AcceptanceError, OSError) as error:
            log.debug("The error came from here", exc_info=True)
            raise click.ClickException(str(error)) from error


class _Commands(click.Group):
    command_class = _Command


def _once():
    """A filter of records: gammapy warns of each file anew, and what is told of a hundred files hides the rest."""
    told: set[str] = set()

    def is_new(record):
        known = record.levelno == logging.WARNING and record.getMessage() in told
        told.add(record.getMessage())
        return not known

    return is_new


def parallel(command):
    return click.option(
        "--n-jobs", type=click.IntRange(min=1), help="Processes.  [default: that of the configuration]"
    )(command)


def _overwriting(command):
    return click.option("--overwrite", is_flag=True, help="Replace an earlier output.")(command)


def _writing(default, help_text, path_type=_FILE):
    """Option of an output; `_output` puts the default into the folder that the configuration names."""
    if default is not None:
        help_text += f"  [default: {default}, in `general.outdir` of CONFIG]"
    return click.option("--output", type=path_type, help=help_text)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
@click.option("--progress/--no-progress", default=None, help="Progress bars.  [default: on a terminal]")
@click.version_option(package_name="gammapy_accmaker")
def cli(log_level, progress):  # progress: see Command
    """Background models of imaging Cherenkov telescopes, for gammapy.

    CONFIG is a YAML file of gammapy's analysis with `method: acceptance` in `datasets.background`:
    `gammapy-accmaker config` prints one.
    """
    handler = logging.StreamHandler()
    handler.addFilter(_once())
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s", handlers=[handler])
    if log_level != "debug":
        warnings.simplefilter("ignore")


@cli.command()
@click.option(
    "--output", default="gammapy-accmaker-demo", type=_FOLDER, show_default=True, help="Folder of the results."
)
@click.option("--n-jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes.")
@_overwriting
def demo(output, n_jobs, overwrite):
    """Simulate runs, fit their background and compare with the truth (about a minute)."""
    import matplotlib as mpl

    from gammapy_accmaker.simulation.demo import run_demo

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
@_writing(None, "File to write; printed otherwise.")
@_overwriting
def config(output, overwrite):
    """Print a configuration with all its options, each explained; it runs as it is where H.E.S.S. DL3 DR1 is there."""
    from gammapy_accmaker.analysis.config import AcceptanceAnalysisConfig
    from gammapy_accmaker.config.config import AcceptanceConfig
    from gammapy_accmaker.config.template import commented_yaml
    from gammapy_accmaker.utils.files import write_atomically

    parameters = AcceptanceConfig.coerce({"exclusion": {"iterative": {}}})
    background = {"method": "acceptance", "parameters": parameters.model_dump(mode="json")}
    options = AcceptanceAnalysisConfig.from_options(
        {
            "observations": {"obs_cone": _CRAB | {"radius": "2 deg"}},
            "datasets": {
                "type": "3d",
                "geom": {"wcs": {"skydir": _CRAB, "width": {"width": "4 deg", "height": "4 deg"}}},
                "background": background,
            },
        }
    )
    text = _HEADER + commented_yaml(options, {"datasets.background.parameters": parameters})
    if output is None:
        click.echo(text, nl=False)
    else:
        write_atomically(output, lambda path: path.write_text(text), overwrite)
        click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=_FILE)
@_writing(None, "Picture of the plan to write (png, pdf or svg).")
@parallel
@_overwriting
def plan(config, output, n_jobs, overwrite):
    """Print which runs are pooled in a fit: one group, or several where the fit has bins of zenith angle or azimuth."""
    from matplotlib.figure import Figure

    from gammapy_accmaker.acceptance.fit import plan_groups
    from gammapy_accmaker.analysis.analysis import make_maker
    from gammapy_accmaker.utils.files import check_free, write_atomically

    analysis = _read_analysis(config, n_jobs)
    figure, kind = Figure(figsize=(7, 5), layout="constrained"), "png"
    if output is not None:
        check_free(output, overwrite)
        kind = output.suffix.lstrip(".").lower() or kind
        if kind not in figure.canvas.get_supported_filetypes():
            raise InputError(f"output: {output} is no kind of picture; give a .png, .pdf or .svg")
    maker = make_maker(analysis.config)
    _select(analysis)
    observations = analysis.observations if analysis.off_observations is None else analysis.off_observations
    groups = plan_groups(observations, maker.config, exclusion=maker.exclusion, n_jobs=analysis.config.general.n_jobs)
    click.echo(str(groups))
    if output is not None:
        groups.plot(figure.add_subplot())
        write_atomically(output, lambda path: figure.savefig(path, format=kind, dpi=150), overwrite)
        click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=_FILE)
@_writing("model.fits", "Model file to write.")
@parallel
@_overwriting
def fit(config, output, n_jobs, overwrite):
    """Fit the acceptance to the runs that CONFIG selects, and write a model file."""
    analysis = _read_analysis(config, n_jobs)
    if analysis.config.datasets.background.model is not None:
        raise InputError("datasets.background.model: it names a fitted model; leave it out to fit")
    output = _output(analysis, output, "model.fits", overwrite)
    maker = _fitted_maker(analysis)
    maker.model.write(output, overwrite=overwrite)
    click.echo(str(maker.model))
    click.echo(f"{output} written")


@cli.command()
@click.argument("config", type=_FILE)
@_writing("datasets", "Folder of the results.", _FOLDER)
@parallel
@_overwriting
def run(config, output, n_jobs, overwrite):
    """Make the datasets of CONFIG with their background; of stacked maps, excess and significance too."""
    from gammapy_accmaker.analysis.results import MARKER, write_results
    from gammapy_accmaker.utils.files import write_folder_atomically

    analysis = _read_analysis(config, n_jobs)
    analysis.config.check_complete()
    output = _output(analysis, output, "datasets", overwrite, holds=MARKER)
    _select(analysis)
    analysis.get_datasets()
    names: list[str] = []
    write_folder_atomically(output, lambda path: names.extend(write_results(analysis, path)), overwrite, holds=MARKER)
    click.echo(f"In {output}: {', '.join(names)}")


@cli.command()
@click.argument("config", type=_FILE)
@_writing("dl3-with-background", "Folder of the new data store.", _FOLDER)
@click.option("--copy", is_flag=True, help="Copy the runs in place of links to them.")
@parallel
@_overwriting
def attach(config, output, copy, n_jobs, overwrite):
    """Write a data store of the runs that CONFIG selects, each with its background; the original is not changed."""
    import numpy as np

    from gammapy_accmaker.acceptance.dl3 import HDU_INDEX, attach_background

    analysis = _read_analysis(config, n_jobs)
    output = _output(analysis, output, "dl3-with-background", overwrite, holds=HDU_INDEX, may_exist=True)
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
@click.argument("model", type=_FILE)
def inspect(model):
    """Print what is in a model file: the model, its configuration, what its fit left out, and its runs."""
    from gammapy_accmaker.acceptance.model import AcceptanceModel

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
@click.argument("config", type=_FILE)
@_writing("report.html", "Page to write.")
@click.option("--cross-validate", is_flag=True, help="Score the fit on runs left out of it; it takes several fits.")
@parallel
@_overwriting
def report(config, output, cross_validate, n_jobs, overwrite):
    """Fit the acceptance, or read the model that CONFIG names, and write an HTML page about it."""
    from gammapy_accmaker.validation.report import write_report

    analysis = _read_analysis(config, n_jobs)
    output = _output(analysis, output, "report.html", overwrite)
    maker = _fitted_maker(analysis)
    write_report(
        maker,
        analysis.observations,
        output,
        with_cross_validation=cross_validate,
        n_jobs=analysis.config.general.n_jobs,
        overwrite=overwrite,
    )
    click.echo(f"{output} written")


def _read_analysis(path, n_jobs):
    """The analysis of a configuration, checked as far as it can be before data are read."""
    from gammapy_accmaker.analysis.analysis import AcceptanceAnalysis
    from gammapy_accmaker.analysis.config import AcceptanceAnalysisConfig

    if not path.exists():
        raise InputError(f"there is no file {path}; `gammapy-accmaker config --output {path}` writes one")
    options = AcceptanceAnalysisConfig.read(path)
    method = options.datasets.background.method
    if method != "acceptance":
        raise InputError(f"datasets.background.method: got {method!r}, but 'acceptance' is needed here")
    return AcceptanceAnalysis(options if n_jobs is None else options.update({"general": {"n_jobs": n_jobs}}))


def _output(analysis, output, name, overwrite, *, holds=None, may_exist=False):
    """Where an output goes: where the user says, or into the folder that the configuration names, which is made.

    It must be free; a folder that ``may_exist`` only where it holds an earlier output.
    """
    from gammapy_accmaker.utils.files import as_path, check_free

    if output is None:
        folder = as_path(analysis.config.general.outdir, "general.outdir")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"general.outdir: the folder {folder} cannot be made ({error.strerror})") from error
        output = folder / name
    if not may_exist or (output / holds).exists():
        check_free(output, overwrite, holds)
    return output


def _select(analysis):
    """Get the runs that the configuration asks for, of which there must be one."""
    analysis.get_observations()
    if not len(analysis.observations):
        irfs = ", ".join(str(getattr(irf, "value", irf)) for irf in analysis.config.observations.required_irf)
        raise InputError(
            "observations: none is selected; check obs_ids, obs_cone and obs_time, and required_irf: runs without one "
            f"of these are left out ({irfs})"
        )


def _fitted_maker(analysis):
    _select(analysis)
    return analysis.get_acceptance()
