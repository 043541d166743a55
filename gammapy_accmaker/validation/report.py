"""`write_report`: one self-contained HTML page about a fit."""

from __future__ import annotations

import datetime
from pathlib import Path
from string import Template

import astropy.units as u
import numpy as np

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.camera.bins import as_edges
from gammapy_accmaker.data.observations import as_observations
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.files import as_path, write_atomically
from gammapy_accmaker.validation import report_runs, report_sections
from gammapy_accmaker.validation.cross_validation import cross_validate
from gammapy_accmaker.validation.html import escape
from gammapy_accmaker.validation.residuals import stack_residuals

__all__ = ["half_decades", "write_report"]

N_SCORE_BINS = 24
TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    model_or_maker,
    observations,
    path,
    *,
    exclusion=None,
    title: str = "Background acceptance",
    band_edges: u.Quantity | None = None,
    with_cross_validation: bool = False,
    n_jobs: int | None = None,
    parallel_backend: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write one HTML page about a fit: runs, model, run effects, residuals, significance, what was excluded.

    The page needs no other file, no network and no scripts.

    Parameters
    ----------
    model_or_maker : `AcceptanceModel` or `AcceptanceBackgroundMaker`
        The fit; a maker must have a model.
    observations : `~gammapy.data.Observations` or list of `~gammapy.data.Observation`
        Runs that the model is held against: those of the fit, or others.
    path : str or `~pathlib.Path`
        File to write.
    exclusion : sky region, region file, mask map, or a list of these, optional
        Left out, in addition to what the fit and the maker leave out.
    title : str
        Of the page.
    band_edges : `~astropy.units.Quantity`, optional
        Energy bands of the residuals; half decades within the energies of the model by default.
    with_cross_validation : bool
        Whether the configuration is scored on runs left out of the fit, beside a plain radial model. It takes several
        fits.
    n_jobs : int, optional
        Processes.
    parallel_backend : {"multiprocessing", "ray"}, optional
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputError
        If the file exists, or if observations or exclusion cannot be used.
    NotFittedError
        If the maker has no model.
    """
    path = as_path(path)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; pass overwrite=True to replace it")
    if not path.parent.is_dir():
        raise InputError(f"path: there is no folder {path.parent}; make it first")
    maker = _as_maker(model_or_maker, exclusion)
    run_table = maker.run_table  # says what to do where there is no model
    if with_cross_validation and maker.config.matching is not None:
        raise InputError("with_cross_validation: models of matched OFF runs are not scored; leave it out")
    observations = as_observations(observations)
    bands = (
        half_decades(maker.model.rate_model.energy_edges)
        if band_edges is None
        else as_edges(band_edges, "TeV", "band_edges") * u.TeV
    )
    residuals = stack_residuals(maker, observations, bands, n_jobs=n_jobs, parallel_backend=parallel_backend)
    validation = None
    if with_cross_validation:
        validation = cross_validate(
            observations,
            report_sections.with_reference(maker.config),
            exclusion=maker.exclusion,
            n_folds=min(5, len(observations)),
            energy_edges=np.geomspace(*residuals.bands[[0, -1]], 1 + N_SCORE_BINS) * u.TeV,
            band_edges=residuals.bands * u.TeV,
            offset_max=0.92 * maker.config.offset_max,
            sky=True,
            n_jobs=n_jobs,
            parallel_backend=parallel_backend,
        )
    run_table = report_runs.with_covariates(run_table, residuals)
    sections = {
        "Summary": report_runs.summary(maker, run_table, residuals),
        "Runs": report_runs.runs(run_table, residuals),
        "Plan": report_sections.plan(maker.model),
        "Model": report_sections.model(maker.model.rate_model, residuals, run_table),
        "Run effects": report_runs.run_effects(run_table),
        "Camera": report_sections.camera(residuals, run_table),
        "Sky": report_sections.sky(residuals, observations),
        "Cross-validation": report_sections.cross_validation(validation),
        "Exclusion": report_sections.exclusion(maker, residuals),
        "Configuration": report_sections.configuration(maker),
    }
    text = _page(title, {name: text for name, text in sections.items() if text})
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), overwrite)


def half_decades(energy_edges: np.ndarray) -> u.Quantity:
    """Edges of half decades within energies in TeV; their ends where not one half decade lies within."""
    low, high = 2 * np.log10(np.asarray(energy_edges)[[0, -1]])
    exponents = np.arange(np.ceil(low - 1e-9), np.floor(high + 1e-9) + 1) / 2
    return 10**exponents * u.TeV if len(exponents) > 1 else energy_edges[[0, -1]] * u.TeV


def _as_maker(model_or_maker, exclusion):
    if isinstance(model_or_maker, AcceptanceModel):
        return AcceptanceBackgroundMaker(model=model_or_maker, exclusion=exclusion)
    if not isinstance(model_or_maker, AcceptanceBackgroundMaker):
        raise InputError(
            f"model_or_maker: got {type(model_or_maker).__name__}, but an AcceptanceModel or an AcceptanceBackgroundMaker is needed"
        )
    maker = model_or_maker
    if exclusion is None:
        return maker
    return AcceptanceBackgroundMaker(maker.config, model=maker.model, exclusion=[maker.exclusion, exclusion])


def _page(title, sections):
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    now = datetime.datetime.now(datetime.UTC)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(f"Report of gammapy_accmaker, {now:%Y-%m-%d %H:%M} UTC"),
        navigation="".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor in anchors.items()),
        sections="\n".join(sections.values()),
        footer=escape("Made by gammapy_accmaker. Rates are per ontime; field-of-view coordinates are gammapy's."),
    )
