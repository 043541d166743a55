"""Sections of the report about model, residuals, validation and settings. Each returns HTML, "" where it has nothing."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter

import numpy as np

from gammapy_accmaker.acceptance.fit import run_keys
from gammapy_accmaker.acceptance.model import WITHOUT_EXCLUSION
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.products.plots import plot_radial
from gammapy_accmaker.utils.run_key import find_runs
from gammapy_accmaker.validation.html import folded, gallery, listing, paragraph, picture, section, table
from gammapy_accmaker.validation.pictures import (
    plot_camera_residuals,
    plot_model_error,
    plot_model_image,
    plot_significance_histogram,
    plot_sky_residuals,
    plot_spectrum_by_zenith,
)
from gammapy_accmaker.validation.sky import score_image

__all__ = [
    "camera",
    "configuration",
    "cross_validation",
    "exclusion",
    "model",
    "plan",
    "sky",
    "with_reference",
]

FEW_COUNTS = 100  # a band with fewer has no picture
MOST_FIELDS = 9  # that are drawn
MOST_REGIONS = 60  # that are listed
REFERENCE = "plain radial model"
PACKAGES = ("gammapy_accmaker", "gammapy", "astropy", "numpy", "scipy", "iminuit", "regions", "pydantic", "matplotlib")
DROPPED = {
    "excluded": "inside the exclusion",
    "out of range": "outside of the energies or offsets of the residuals",
    "outside GTI": "outside of the good time intervals",
    "not finite": "position, time or energy not finite",
    "unexposed bin": "in pixels with next to no exposure",
}


def _bands_with_counts(residuals):
    return [k for k, row in enumerate(residuals.counts) if row.sum() >= FEW_COUNTS]


def _histograms(residuals, scores, bands, what, where):
    """One picture for each band."""
    return [
        picture(
            lambda ax, k=k: plot_significance_histogram(scores[k], ax),
            f"{_band_name(residuals, k)}, {what}.",
            f"Histogram of the significance {where}, {_band_name(residuals, k)}",
        )
        for k in bands
    ]


def _band_name(residuals, k):
    return f"{residuals.bands[k]:.3g} to {residuals.bands[k + 1]:.3g} TeV"


def plan(acceptance_model) -> str:
    """How the runs were pooled or matched, for a model that says so."""
    parts = []
    if acceptance_model.plan is not None:
        groups = acceptance_model.plan.table
        text = f"Runs were pooled in {len(groups)} bins of zenith angle or azimuth; a model was fitted to each."
        drawn = picture(
            acceptance_model.plan.plot,
            "Bins and the runs in them.",
            "Bins of zenith angle and azimuth with the runs in them",
        )
        rows = [
            (row["GROUP"], f"{row['AZIMUTH_MIN']:.0f} to {row['AZIMUTH_MAX']:.0f}",
             f"{row['COS_ZENITH_MIN']:.2f} to {row['COS_ZENITH_MAX']:.2f}", row["N_RUNS"], f"{row['LIVETIME']:.1f}",
             row["COUNTS"], row["RUNS"])
            for row in groups
        ]  # fmt: skip
        header = ["bin", "azimuth [deg]", "cos zenith", "number of runs", "livetime [h]", "counts", "runs"]
        parts += [paragraph(text), gallery([drawn]), table(header, rows, "Bins of zenith angle and azimuth")]
    matches = acceptance_model.matches
    if len(matches):
        text = listing("\n".join(matches.pformat(max_lines=-1, max_width=-1)))
        parts += ["<h3>OFF runs of each ON run</h3>", folded(f"{len(matches)} matches", text)]
    return section("plan", "Plan", *parts) if parts else ""


def model(rate_model, residuals, run_table) -> str:
    """The model by energy and zenith angle."""
    cos_zeniths = _cos_zeniths(rate_model, run_table)
    bands = _bands_with_counts(residuals)
    bands = [bands[0], bands[len(bands) // 2], bands[-1]] if len(bands) > 3 else bands
    energies = [float(np.sqrt(residuals.bands[k] * residuals.bands[k + 1])) for k in bands]
    typical = cos_zeniths[len(cos_zeniths) // 2]
    curves = [
        picture(
            lambda ax: plot_spectrum_by_zenith(rate_model, cos_zeniths, ax),
            "Background rate of the mean run at the centre of the camera.",
            "Background rate at the centre of the camera against energy",
        ),
        picture(
            lambda ax: plot_radial(rate_model, energies, ax),
            "Background rate against offset, the mean over position angles, at the middle of the zenith angles.",
            "Background rate against offset",
        ),
        picture(
            lambda ax: plot_model_error(rate_model, typical, ax),
            f"Error of the rate of a run whose own events have not adapted it{_at(typical, cos_zeniths)}.",
            "Relative error of the model against energy",
        ),
    ]
    images = []
    for cos_zenith in cos_zeniths:
        at = _at(cos_zenith, cos_zeniths)
        for energy in energies:
            images.append(
                picture(
                    lambda ax, energy=energy, z=cos_zenith: plot_model_image(rate_model, energy, z, ax),
                    f"{energy:.2g} TeV{at}.",
                    f"Image of the background rate in the camera at {energy:.2g} TeV{at}",
                    has_colorbar=True,
                )
            )
    text = "Rate of the mean run, over its value at the centre of the camera. FOV_LON grows with decreasing azimuth."
    return section("model", "Model", gallery(curves), paragraph(text), gallery(images))


def _at(cos_zenith, cos_zeniths):
    return f" at {np.degrees(np.arccos(cos_zenith)):.0f} deg zenith angle" if len(cos_zeniths) > 1 else ""


def _cos_zeniths(rate_model, run_table):
    if rate_model.zenith_range is None:
        return [np.nan]
    low, high = rate_model.zenith_range
    zenith = np.asarray(run_table["ZENITH"][np.asarray(run_table["USED"], dtype=bool)], dtype=float)
    cos_zenith = np.cos(np.radians(zenith[np.isfinite(zenith)]))
    if high - low < 0.02 or not len(cos_zenith):
        return [0.5 * (low + high)]
    return [float(np.clip(z, low, high)) for z in (np.max(cos_zenith), np.median(cos_zenith), np.min(cos_zenith))]


def _trained_note(residuals, run_table):
    """What the widths mean depends on whether the fit has seen the events."""
    trained = run_keys(
        run_table[np.array([bool(r["USED"]) and str(r["ROLE"]) == "fit" for r in run_table], dtype=bool)]
    )
    seen = sum(len(found) > 0 for found in find_runs([run.key for run in residuals.runs], trained))
    if seen:
        return (
            f"{seen} of these {len(residuals.runs)} runs have trained the model, which makes the stacked residuals "
            "narrower than those of unseen runs. A cross-validation shows how well unseen runs are predicted."
        )
    return f"None of these {len(residuals.runs)} runs has trained the model; their own events have adapted it to them."


def camera(residuals, run_table) -> str:
    """Residuals in the camera frame."""
    scores, bands = residuals.camera_scores(), _bands_with_counts(residuals)
    maps = [
        picture(
            lambda ax, k=k: plot_camera_residuals(scores[k], residuals.fov, ax),
            f"{_band_name(residuals, k)}: {residuals.counts[k].sum():.0f} events.",
            f"Map of the significance of the residuals in the camera frame, {_band_name(residuals, k)}",
            has_colorbar=True,
        )
        for k in bands
    ]
    histograms = _histograms(residuals, scores, bands, "camera frame", "in the camera frame")
    rows = [
        (
            _band_name(residuals, k),
            f"{residuals.counts[k].sum():.0f}",
            f"{residuals.expected[k].sum():.1f}",
            *_mean_and_width(scores[k]),
        )
        for k in range(len(scores))
    ]
    return section(
        "camera",
        "Residuals in the camera frame",
        paragraph("Significance of counts against expectation in discs of 0.2 deg, all runs stacked."),
        paragraph(_trained_note(residuals, run_table), "note"),
        gallery(maps),
        gallery(histograms),
        table(["energy", "counts", "expected", "mean", "width"], rows, "Significance in the camera frame by energy"),
    )


def _mean_and_width(scores):
    scores = scores[np.isfinite(scores)]
    return (f"{scores.mean():+.2f}", f"{scores.std():.2f}") if len(scores) else ("", "")


def sky(residuals, observations) -> str:
    """Residuals in the sky, field by field."""
    fields = [f for f in residuals.fields if any(k not in residuals.failures for k in f.numbers)]
    fields = sorted(fields, key=lambda f: -f.expected.data.sum())
    maps = []
    for field in fields[:MOST_FIELDS]:
        image, center = score_image(field), field.counts.geom.center_skydir.icrs
        seen = np.argwhere(np.isfinite(image.data))
        if not len(seen):
            continue
        margin = min(seen.min(), (np.array(image.data.shape) - 1 - seen).min())
        image = image.crop(max(margin - 2, 0))
        n = len([k for k in field.numbers if k not in residuals.failures])
        name = f"RA {center.ra.deg:.2f} deg, Dec {center.dec.deg:+.2f} deg: {n} run{'s' * (n > 1)}"
        maps.append(
            picture(
                lambda ax, image=image: plot_sky_residuals(image, ax),
                f"{name}, all energies.",
                f"Map of the significance of the residuals in the sky around {name}",
                has_colorbar=True,
                projection=image.geom.wcs,
            )
        )
    scores, bands = residuals.sky_scores(), _bands_with_counts(residuals)
    histograms = _histograms(residuals, scores, bands, "all fields", "in the sky")
    text = "Significance in discs of 0.2 deg, the runs of a field stacked, each with its own norm. Grey: excluded or not seen."
    if len(fields) > MOST_FIELDS:
        text += f" The {MOST_FIELDS} fields with the most events of {len(fields)} are drawn; the histograms hold all."
    rows = [(_band_name(residuals, k), len(s), *_mean_and_width(s)) for k, s in enumerate(scores)]
    return section(
        "sky",
        "Residuals in the sky",
        paragraph(text),
        gallery(maps),
        gallery(histograms),
        table(["energy", "discs", "mean", "width"], rows, "Significance in the sky by energy"),
    )


def with_reference(config: AcceptanceConfig) -> dict[str, AcceptanceConfig]:
    """The configurations of a cross-validation: a plain radial model first, to which the gain of this one refers."""
    if config.exclusion.iterative is not None:  # what was found is given as an exclusion instead
        config = config.update({"exclusion": config.exclusion.model_copy(update={"iterative": None})})
    if config.model.type == "radial":
        return {"this model": config}
    shared = ("energy", "offset_max", "fov_alignment", "time_step", "exclusion", "observatory_location")
    options = {name: getattr(config, name) for name in shared}
    if config.zenith.type == "none":  # runs may have no zenith angle
        options["zenith"] = {"type": "none"}
    radial = AcceptanceConfig(model={"type": "radial"}, **options)
    return {REFERENCE: radial, "this model": config}


def cross_validation(result) -> str:
    """Held-out scores and significance."""
    if result is None:
        return ""
    scores = [
        (row["CONFIG"], f"{row['SCORE']:.0f}", f"{row['GAIN']:+.0f} ± {row['GAIN_ERR']:.0f}",
         f"{row['LOG_NORM_BIAS']:+.3f}", f"{row['LOG_NORM_STD']:.3f}", f"{row['FIT_TIME']:.1f}")
        for row in result.table
    ]  # fmt: skip
    header = ["model", "log-likelihood", "gain", "mean log norm", "scatter of log norm", "time of a fit [s]"]
    widths = {}
    for row in result.significance:
        band = f"{row['FRAME']}, {row['E_MIN']:.3g} to {row['E_MAX']:.3g} TeV"
        widths.setdefault(band, []).append(f"{row['MEAN']:+.2f} / {row['WIDTH']:.2f}")
    names = [str(name) for name in result.table["CONFIG"]]
    return section(
        "cross-validation",
        "Cross-validation",
        paragraph(
            "Runs are left out of the fit in turn and predicted by it; what is fitted to the run itself is fitted to one half "
            "of its events and scored on the other. A higher log-likelihood is better."
        ),
        table(header, scores, "Held-out scores"),
        "<h3>Significance of the held-out runs</h3>",
        table(["mean / width", *names], [(band, *found) for band, found in widths.items()], "Held-out significance"),
    )


def exclusion(maker, residuals) -> str:
    """Regions and events that were not used."""
    options = maker.config.exclusion
    found_lines = Exclusion(maker.found_regions).lines()
    items = [line for line in maker.exclusion.lines() if line not in found_lines]
    if options.wobble_half is not False:
        items.append("the half of the camera with the source, of each run")
    found = maker.model.found
    items += [
        f"found in the data: circle around RA {row['RA']:.3f} deg, Dec {row['DEC']:+.3f} deg, radius {row['RADIUS']:.2f} deg, "
        f"{row['SIGNIFICANCE']:.1f} sigma"
        for row in found
    ]
    if len(found) and not found.meta.get("STABLE", True):
        items.append("the search in the data did not come to an end")
    unexcluded = np.array([run.unexcluded for run in residuals.runs])
    parts = []
    if items:
        parts.append(
            paragraph(
                f"{100 * (1 - unexcluded.mean()):.1f} % of the exposure of the field of view is excluded in the mean, "
                f"{100 * (1 - unexcluded.min()):.1f} % in the run where it is most. Margin: {options.margin}."
            )
        )
        shown = items[:MOST_REGIONS]
        if len(items) > MOST_REGIONS:
            shown.append(f"and {len(items) - MOST_REGIONS} more")
        parts.append(folded(f"List of what is excluded ({len(items)})", listing("\n".join(shown))))
    else:
        parts.append(paragraph(f"No part of the sky was excluded: {WITHOUT_EXCLUSION}.", "warn"))
    dropped = Counter()
    for run in residuals.runs:
        dropped.update(run.dropped)
    rows = [(text, dropped[name]) for name, text in DROPPED.items() if dropped[name]]
    if rows:
        parts.append(table(["events not used", "number"], rows, "Events not used by reason"))
    return section("exclusion", "What was excluded", *parts)


def configuration(maker) -> str:
    """Settings and versions."""
    versions = [("Python", platform.python_version())]
    versions += [(name, importlib.metadata.version(name)) for name in PACKAGES if _is_installed(name)]
    return section(
        "configuration",
        "Configuration and versions",
        listing(maker.config.to_yaml()),
        table(["package", "version"], versions, "Versions"),
    )


def _is_installed(name):
    try:
        importlib.metadata.version(name)
        return True
    except importlib.metadata.PackageNotFoundError:
        return False
