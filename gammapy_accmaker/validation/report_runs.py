"""Sections of the report about runs: summary, hours, run effects, what was left out. Each returns HTML."""

from __future__ import annotations

import numpy as np
from astropy.table import Table

from gammapy_accmaker.acceptance.fit import run_keys
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.models.goodness import describe_goodness
from gammapy_accmaker.utils.run_key import find_runs
from gammapy_accmaker.validation.html import facts, folded, gallery, paragraph, picture, section, table
from gammapy_accmaker.validation.pictures import LABELS, OUTLIER, plot_run_effect, run_outliers

__all__ = ["run_effects", "runs", "summary", "with_covariates"]

EFFECTS = ("NORM", "SHIFT")
CONDITIONS = ("MJD", "ZENITH", "MUONEFF")
HOUR = 3600.0
# column of the run table -> heading, factor and form of its numbers
COLUMNS = {
    "OBS_ID": ("run", None, "s"),
    "ROLE": ("role", None, "s"),
    "ONTIME": ("ontime [min]", 1 / 60, ".1f"),
    "ZENITH": ("zenith [deg]", 1, ".1f"),
    "AZIMUTH": ("azimuth [deg]", 1, ".1f"),
    "MJD": ("MJD", 1, ".3f"),
    "MUONEFF": ("muon efficiency", 1, ".3f"),
    "COUNTS": ("counts", 1, ".0f"),
    "EXPECTED": ("expected", 1, ".0f"),
    "NORM_EMIN": ("norm from [TeV]", 1, ".2f"),
}


def with_covariates(run_table: Table, residuals) -> Table:
    """A copy of the run table with the covariates of the runs that were read, NaN for the others."""
    run_table = run_table.copy()
    for name in RUN_COLUMNS:
        if name not in run_table.colnames:  # models that were made elsewhere have no runs
            run_table[name] = np.zeros(len(run_table))
    seen = [run.key for run in residuals.runs]
    which = find_runs(run_keys(run_table), seen)
    covariates = [residuals.runs[found[0]].covariates if len(found) == 1 else {} for found in which]
    for name in sorted({name for run in residuals.runs for name in run.covariates}):
        run_table[name] = [of_run.get(name, np.nan) for of_run in covariates]
    return run_table


def summary(maker, run_table: Table, residuals) -> str:
    """The figures that come first."""
    used, rate = _used(run_table), maker.model.rate_model
    hours = np.sum(used["ONTIME"]) / HOUR
    zenith = f"{np.min(used['ZENITH']):.0f} to {np.max(used['ZENITH']):.0f} deg" if len(used) else "none"
    items = [
        ("Runs used", f"{len(used)} of {len(run_table)}"),
        ("Ontime", f"{hours:.1f} h"),
        ("Events in the fit", f"{np.sum(used['COUNTS']):,.0f}".replace(",", " ")),
        ("Model", maker.config.model.type),
        ("Energy", f"{rate.energy_edges[0]:.3g} to {rate.energy_edges[-1]:.3g} TeV"),
        ("Largest offset", f"{residuals.offset_max:.3g} deg"),
        ("Zenith angle", f"{zenith}; {rate.describe_zenith()}"),
        ("Fields", str(len(residuals.fields))),
    ]
    parts = [facts(items)]
    if rate.not_converged:
        parts.append(paragraph(f"{rate.not_converged[0].upper()}{rate.not_converged[1:]}.", "warn"))
    left_out = len(run_table) - len(used)
    if left_out:
        parts.append(paragraph(f"{left_out} runs are left out of the fit; the reasons are below, under Runs.", "warn"))
    if rate.goodness:
        poor = any(fit.is_poor for fit in rate.goodness)
        parts.append(paragraph(f"Goodness of fit: {describe_goodness(rate.goodness)}.", "warn" if poor else ""))
    outliers = _outliers(used)
    if outliers:
        names = sorted({str(row[0]) for row in outliers})
        shown = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "")
        parts.append(paragraph(f"Runs to look at: {shown}; see Run effects.", "warn"))
    return section("summary", "Summary", *parts)


def runs(run_table: Table, residuals) -> str:
    """Hours, the runs, and those that were left out."""
    used = _used(run_table)
    parts = []
    if len(used):
        parts.append(
            gallery(
                [
                    picture(
                        lambda ax: _plot_hours(ax, used["ZENITH"], used["ONTIME"], "zenith angle [deg]"),
                        "Hours of ontime by zenith angle.",
                        "Histogram of the hours of ontime over the zenith angle",
                    ),
                    picture(
                        lambda ax: _plot_hours(ax, used["AZIMUTH"], used["ONTIME"], "azimuth [deg]"),
                        "Hours of ontime by azimuth of the pointing.",
                        "Histogram of the hours of ontime over the azimuth",
                    ),
                    picture(
                        lambda ax: plot_run_effect(used, "COUNTS", "MJD", ax),
                        "Events of each run in the fit, against time.",
                        "Events of each run against its date",
                    ),
                ]
            )
        )
    left_out = [(row["OBS_ID"], row["FLAG"]) for row in run_table if not row["USED"]]
    if left_out:
        parts += ["<h3>Left out of the fit</h3>", table(["run", "reason"], left_out, "Runs left out of the fit")]
    else:
        parts.append(paragraph("No run was left out of the fit."))
    if residuals.failures:
        parts.append("<h3>Left out of the residuals</h3>")
        parts.append(
            table(
                ["run", "reason"],
                [(f.name, f.reason) for f in residuals.failures.values()],
                "Runs left out of the residuals",
            )
        )
    columns = {name: spec for name, spec in COLUMNS.items() if name in used.colnames}
    effects = [name for name in EFFECTS if _varies(used, name)]
    header = [spec[0] for spec in columns.values()] + [LABELS[name] for name in effects] + ["deviance", "flag"]
    rows = [
        [
            *(_number(row[name], factor, form) for name, (_, factor, form) in columns.items()),
            *(f"{row[name]:.3f} ± {row[name + '_ERR']:.3f}" for name in effects),
            _number(row["DEVIANCE"], 1, ".1f"),
            row["FLAG"],
        ]
        for row in used
    ]
    shown = [*columns, *effects, *(name + "_ERR" for name in effects), "DEVIANCE", "FLAG"]
    meaning = [(name, RUN_COLUMNS[name].description) for name in shown if name in RUN_COLUMNS]
    described = table(["column of the run table", "what it holds"], meaning, "Meaning of the columns")
    parts.append(folded(f"All {len(used)} runs", table(header, rows, "Runs of the fit") + described))
    return section("runs", "Runs", *parts)


def run_effects(run_table: Table) -> str:
    """Effects of the runs against their conditions, and the runs that stand apart."""
    used = _used(run_table)
    effects = [name for name in EFFECTS if _varies(used, name)]
    conditions = [name for name in CONDITIONS if name in used.colnames and _varies(used, name)]
    if not effects or not conditions:
        return section("run-effects", "Run effects", paragraph("This fit has no effects that differ from run to run."))
    pictures = [
        picture(
            lambda ax, effect=effect, condition=condition: plot_run_effect(used, effect, condition, ax),
            f"{LABELS[effect].capitalize()} of each run against {LABELS[condition].split(' [')[0]}.",
            f"{LABELS[effect]} of each run against {LABELS[condition]}",
        )
        for effect in effects
        for condition in conditions
    ]
    spreads = ", ".join(f"{LABELS[name]} {100 * np.nanstd(used[name]):.1f} %" for name in effects)
    parts = [
        paragraph(
            f"What the events of each run say about it, beyond the model of the mean run. Scatter from run to run: {spreads}. "
            f"Runs that lie more than {OUTLIER:.0f} standard deviations from the median are red and named."
        ),
        gallery(pictures),
    ]
    outliers = _outliers(used)
    if outliers:
        parts.append("<h3>Runs to look at</h3>")
        parts.append(table(["run", "what", "value", "standard deviations"], outliers, "Runs that stand apart"))
    else:
        parts.append(paragraph("No run stands apart and none is flagged."))
    return section("run-effects", "Run effects", *parts)


def _outliers(used):
    rows = []
    for name in EFFECTS:
        if not _varies(used, name):
            continue
        deviation = run_outliers(used, name)
        for k in np.flatnonzero(np.abs(deviation) > OUTLIER):
            rows.append((used["OBS_ID"][k], LABELS[name], f"{used[name][k]:.3f}", f"{deviation[k]:+.1f}"))
    rows += [(row["OBS_ID"], row["FLAG"], "", "") for row in used if str(row["FLAG"])]
    return rows


def _plot_hours(ax, values, ontime, label):
    values = np.asarray(values, dtype=float)
    known = np.isfinite(values)
    ax.hist(values[known], bins=12, weights=np.asarray(ontime, dtype=float)[known] / HOUR, color="C0", alpha=0.8)
    ax.set(xlabel=label, ylabel="ontime [h]")


def _used(run_table):
    return run_table[np.asarray(run_table["USED"], dtype=bool)]


def _varies(used, name):
    values = np.asarray(used[name], dtype=float)
    values = values[np.isfinite(values)]
    return len(values) > 0 and (len(values) == 1 or np.ptp(values) > 0)


def _number(value, factor, form):
    return format(str(value) if form == "s" else value if factor is None else value * factor, form)
