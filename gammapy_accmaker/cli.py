"""Command line: `gammapy-accmaker`."""

from __future__ import annotations

import logging
import sys
import time
import warnings

import click
from gammapy.utils import pbar

from gammapy_accmaker.errors import AcceptanceError


@click.group()
@click.option(
    "--log-level", default="warning", type=click.Choice(["debug", "info", "warning", "error"]), show_default=True
)
@click.version_option(package_name="gammapy_accmaker")
def cli(log_level):
    """Background models of imaging Cherenkov telescopes, for gammapy."""
    logging.basicConfig(level=log_level.upper(), format="%(levelname)s: %(message)s")
    if log_level != "debug":
        warnings.simplefilter("ignore")


@cli.command()
@click.option("--output", default="gammapy-accmaker-demo", show_default=True, help="Folder of the results.")
@click.option("--n-jobs", default=1, show_default=True, help="Processes.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier demo.")
def demo(output, n_jobs, overwrite):
    """Simulate runs, fit their background and compare with the truth (under a minute)."""
    import matplotlib as mpl

    from gammapy_accmaker.showcase import run_demo

    mpl.use("Agg")
    pbar.SHOW_PROGRESS_BAR = True
    start = time.monotonic()
    try:
        result = run_demo(output, n_jobs, overwrite)
    except (AcceptanceError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
    click.echo("\nBackground counts of all runs within the field of view:")
    click.echo("\n".join(result.table.pformat(max_lines=-1, max_width=-1)))
    mean, width = result.off_source
    click.echo(f"\nSource: {result.source_significance:.1f} sigma; off the source: mean {mean:+.2f}, width {width:.2f}")
    click.echo(f"{time.monotonic() - start:.0f} s. In {result.path}: model.fits, datasets.yaml, run_table.ecsv,")
    click.echo("truth_against_fit.ecsv, model.png, residuals.png, significance.png, and the runs in dl3")
