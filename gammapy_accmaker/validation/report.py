"""`write_report`: one self-contained HTML page about a fit, without scripts.

The verdict comes first: how well the counts agree with the model, what to look at, and what was excluded. All else is
folded, so that the page is short where the screen is small.

From the top: pieces of HTML (escaped text, tables, pictures as data); the verdict; sections about model, residuals,
validation and settings; sections about runs (summary, hours, effects, what was left out); and the page. A section
returns HTML, "" where it has nothing to say.
"""

from __future__ import annotations

import base64
import datetime
import html
import importlib.metadata
import io
import platform
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any

import astropy.units as u
import matplotlib as mpl
import numpy as np
from astropy.table import Table
from matplotlib.figure import Figure

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance.model import WITHOUT_EXCLUSION, AcceptanceModel
from gammapy_accmaker.acceptance.run_table import RUN_COLUMNS
from gammapy_accmaker.acceptance.sources import describe_sources
from gammapy_accmaker.camera.bins import as_edges
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.config.kinds import RadialOptions
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.observations import as_observations, event_locations
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.goodness import describe_goodness
from gammapy_accmaker.products.plots import plot_asymmetry, plot_error, plot_profile, plot_rate_image, plot_spectrum
from gammapy_accmaker.utils.describe import counted, in_thousands
from gammapy_accmaker.utils.files import as_path, write_atomically
from gammapy_accmaker.utils.run_key import find_runs, run_keys
from gammapy_accmaker.validation.cross_validation import cross_validate
from gammapy_accmaker.validation.pictures import (
    LABELS,
    OUTLIER,
    plot_camera_residuals,
    plot_counts_by_energy,
    plot_ratio_by_energy,
    plot_ratio_by_run,
    plot_run_effect,
    plot_significance_histogram,
    plot_sky_residuals,
    run_outliers,
)
from gammapy_accmaker.validation.residuals import stack_residuals
from gammapy_accmaker.validation.significance import LEAST_IN_DISC, Significance, held_out, significances, together
from gammapy_accmaker.validation.stacks import DISC_RADIUS, score_image

# ---- Pieces of HTML ----

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
}
_SIZE, _DPI = (4.6, 3.7), 150  # inches


def escape(text) -> str:
    """Text that is shown as it is, whatever it holds."""
    return html.escape(str(text), quote=True)


def _paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def _section(anchor: str, title: str, *parts: str) -> str:
    """A section with a heading; the parts are HTML."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def _folded_section(anchor: str, title: str, *parts: str) -> str:
    """A section of which the heading is shown; a link to what is in it opens it."""
    inner = f'<div id="{escape(anchor)}">{"".join(parts)}</div>'
    return f"<section><details><summary><h2>{escape(title)}</h2></summary>{inner}</details></section>"


def _folded(summary: str, *parts: str) -> str:
    """What is shown when the reader opens it; the parts are HTML."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def _facts(items: Iterable[tuple[str, str]]) -> str:
    """Tiles, each with a name and a value."""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="facts">{tiles}</dl>'


def _listing(text: str) -> str:
    """Text with its line breaks."""
    return f'<pre class="scroll" tabindex="0">{escape(text)}</pre>'


def table(header: list[str], rows: Iterable[Iterable], label: str) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Parameters
    ----------
    header : list of str
    rows : iterable of iterables
        Cells, formatted. Columns of numbers are set to the right.
    label : str
        What the table holds, for those who hear the page.
    """
    rows = [[str(cell) for cell in row] for row in rows]
    kinds = [' class="number"' if all(map(_is_number, column)) else "" for column in zip(*rows, strict=True)]
    kinds = kinds or [""] * len(header)
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(header, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _is_number(text):
    try:
        float(text.split(" ± ")[0].replace(" ", "") or "nan")  # thousands are set apart
    except ValueError:
        return False
    return True


def _picture(
    draw: Callable,
    caption: str,
    alt: str,
    *,
    has_colorbar: bool = False,
    has_title: bool = False,
    projection=None,
) -> str:
    """A figure with a picture in it.

    Parameters
    ----------
    draw : callable
        Called with axes to draw on.
    caption, alt : str
        Below the picture, and in place of it.
    has_colorbar : bool
        Whether room for its numbers is left.
    has_title : bool
        Whether room for two lines above the axes is left.
    projection : `~astropy.wcs.WCS`, optional
        Of the axes.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE)
        # margins that suit all pictures: they line up side by side, and finding the margins of each takes twice the
        # time
        figure.subplots_adjust(
            left=0.17, right=0.93 if has_colorbar else 0.97, bottom=0.15, top=0.86 if has_title else 0.96
        )
        draw(figure.add_subplot(projection=projection))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=_DPI)
    width, height = (int(np.round(side * _DPI)) for side in _SIZE)
    data = base64.b64encode(png.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _gallery(pictures: Iterable[str]) -> str:
    """Pictures side by side, as many as the page is wide for; the last row is centred."""
    pictures = list(pictures)
    columns = 2 if len(pictures) in (1, 2, 4) else 3
    return f'<div class="gallery" style="--columns: {columns}">{"".join(pictures)}</div>' if pictures else ""


# ---- The verdict ----

_MOST_FLAGGED = 8  # that are listed first
_SIGNIFICANCE = (
    f"The counts in a disc of {DISC_RADIUS:g} deg radius around each pixel are held against what the model expects "
    "there: the Poisson probability of at most so many counts, as a number of standard deviations of a normal "
    "distribution. Since counts are whole numbers, the probability is drawn at random between that of one count less "
    "and that of the count; for a true model the significance then has mean 0 and width 1, however few the counts are. "
    f"With fewer than {LEAST_IN_DISC:g} counts expected in a disc it tells next to nothing of the model, and is not "
    "shown. Discs overlap; the errors are those of as many as fit side by side."
)


def _verdict(residuals, run_table, validation) -> list[str]:
    """What the significance says of the model: in a sentence, in a table, and what it is."""
    found = significances(residuals) if validation is None else held_out(validation, residuals)
    whole = {frame: together(bands) for frame, bands in found.items()}
    told = {frame: one for frame, one in whole.items() if one is not None}
    kind, whose = _seen_by_fit(residuals, run_table) if validation is None else ("Held-out runs", _HELD_OUT_NOTE)
    if not told:
        text = "No verdict: in no energy band are there counts enough for one."
        return [_paragraph(text, "warn"), _paragraph(whose, "note"), _paragraph(_SIGNIFICANCE)]
    # each band for itself: what is too low in one and too high in another is no agreement
    apart = [
        f"{_band_name(residuals, k)} ({frame})"
        for frame, bands in found.items()
        for k in _bands_that_tell(bands)
        if not bands[k].is_good
    ]
    numbers = "; ".join(
        f"in the {frame} ({_range_that_tells(residuals, found[frame])}) mean {one.in_words()[0]}, width "
        f"{one.in_words()[1]}"
        for frame, one in told.items()
    )
    text = f"{kind}: significance {numbers}. "
    if apart:
        text += f"The counts deviate from the model at {', '.join(apart)}: see the residuals below."
    else:
        text += "The model describes the counts."
    rows = [
        (_band_name(residuals, k), in_thousands(found["camera"][k].counts), f"{found['camera'][k].in_disc:.1f}",
         *found["camera"][k].in_words(), *found["sky"][k].in_words())
        for k in range(len(residuals.bands) - 1)
    ]  # fmt: skip
    header = ["energy", "events", "per disc", "camera: mean", "width", "sky: mean", "width"]
    return [
        _paragraph(text, "warn" if apart else "good"),
        _paragraph(whose, "note"),
        table(header, rows, "Significance by energy"),
        _folded("What significance is here", _paragraph(_SIGNIFICANCE)),
    ]


def _range_that_tells(residuals, found):
    bands = _bands_that_tell(found)
    return f"{residuals.bands[bands[0]]:.3g} to {residuals.bands[bands[-1] + 1]:.3g} TeV"


_HELD_OUT_NOTE = (
    "Held-out: runs were left out of the fit in turn and predicted by it, each adapted to by its own events as the "
    "maker does."
)


# ---- Sections about model, residuals, validation and settings ----

_MOST_FIELDS = 9  # that are drawn
_MOST_REGIONS = 60  # that are listed
_REFERENCE = "plain radial model"
_PACKAGES = ("gammapy_accmaker", "gammapy", "astropy", "numpy", "scipy", "iminuit", "regions", "pydantic", "matplotlib")
_DROPPED = {
    "excluded": "inside the exclusion",
    "out of range": "outside of the energies or offsets of the residuals",
    "outside GTI": "outside of the good time intervals",
    "not finite": "position, time or energy not finite",
    "unexposed bin": "in pixels with next to no exposure",
}


def _bands_that_tell(found: list[Significance]) -> list[int]:
    return [k for k, one in enumerate(found) if one.tells]


def _histogram(residuals, scores, bands, where):
    """One picture of all bands."""
    names = [_band_name(residuals, k) for k in bands]
    return _picture(
        lambda ax: plot_significance_histogram([scores[k] for k in bands], ax, label=names),
        f"Significance {where} by energy.",
        f"Histogram of the significance {where} by energy",
    )


def _band_name(residuals, k):
    return f"{residuals.bands[k]:.3g} to {residuals.bands[k + 1]:.3g} TeV"


def _plan(acceptance_model) -> str:
    """How the runs were pooled or matched, for a model that says so."""
    parts = []
    if acceptance_model.plan is not None:
        groups = acceptance_model.plan.table
        text = f"Runs were pooled in {len(groups)} bins of zenith angle or azimuth; a model was fitted to each."
        drawn = _picture(
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
        parts += [_paragraph(text), _gallery([drawn]), table(header, rows, "Bins of zenith angle and azimuth")]
    matches = acceptance_model.matches
    if len(matches):
        text = _listing("\n".join(matches.pformat(max_lines=-1, max_width=-1)))
        parts += ["<h3>OFF runs of each ON run</h3>", _folded(f"{len(matches)} matches", text)]
    return _folded_section("plan", "Plan", *parts) if parts else ""


def _counts(residuals) -> str:
    """Counts against the model by energy and by run."""
    counts, expected = residuals.spectra()
    runs = sorted(residuals.runs, key=lambda run: run.mjd)
    edges, names = residuals.energy_edges, [run.key.obs_id for run in runs]
    # with half of the events each: the norm of a run sees to their sum
    split = int(np.clip(np.searchsorted(np.cumsum(counts) / max(counts.sum(), 1), 0.5) + 1, 1, len(edges) - 2))
    parts = [slice(None, split), slice(split, None)] if len(counts) > 1 else [slice(None)]
    by_run = [
        np.array([[getattr(run, what)[part].sum() for run in runs] for part in parts])
        for what in ("counts", "expected")
    ]
    labels = [f"below {edges[split]:.2g} TeV", f"above {edges[split]:.2g} TeV"][: len(parts)]
    pictures = [
        _picture(
            lambda ax: plot_ratio_by_energy(edges, counts, expected, ax),
            "Events over the model by energy, all runs.",
            "Ratio of events to the model by energy",
        ),
        _picture(
            lambda ax: plot_ratio_by_run(names, by_run[0], by_run[1], ax, labels=labels),
            "Events over the model by run; named where more than 4 standard deviations away.",
            "Ratio of events to the model by run",
        ),
    ]
    spectrum = _picture(
        lambda ax: plot_counts_by_energy(edges, counts, expected, ax),
        "Events and the model by energy, all runs.",
        "Events and what the model expects by energy",
    )
    text = (
        f"{in_thousands(counts.sum())} events outside of the exclusion, {in_thousands(expected.sum())} expected "
        "with the effects of each run."
    )
    rows = [
        (f"{a:.3g} to {b:.3g} TeV", f"{n:.0f}", f"{mu:.1f}")
        for a, b, n, mu in zip(edges[:-1], edges[1:], counts, expected, strict=True)
    ]
    numbers = table(["energy", "events", "expected"], rows, "Events and expectation by energy")
    folded = _folded("Spectrum and numbers", _gallery([spectrum]), numbers)
    return _section("counts", "Counts against the model", _paragraph(text), _gallery(pictures), folded)


def _model(model: AcceptanceModel, residuals, run_table) -> str:
    """The model by energy, offset and zenith angle, and its asymmetry."""
    rate_model, view = model.rate_model, model.view
    cos_zeniths = _cos_zeniths(rate_model, run_table)
    typical = cos_zeniths[len(cos_zeniths) // 2]
    seen = view.at(rate_model, [typical])
    energies = seen.energies(3)
    curves = [
        _picture(
            lambda ax: plot_spectrum(rate_model, ax, cos_zeniths=cos_zeniths, view=view),
            "Background rate of the mean run at the centre of the camera, with the error of the fit.",
            "Background rate at the centre of the camera against energy",
            has_title=True,
        ),
        _picture(
            lambda ax: plot_profile(rate_model, energies, ax, view, cos_zenith=typical),
            "Background rate against offset over that at the centre, the mean over position angles.",
            "Background rate against offset",
            has_title=True,
        ),
        _picture(
            lambda ax: plot_error(rate_model, typical, ax, view),
            "Error of the rate of a run whose own events have not adapted it.",
            "Relative error of the model against energy",
            has_title=True,
        ),
    ]
    at = {"cos_zenith": typical, "view": view}
    images = [
        _picture(
            lambda ax: plot_rate_image(rate_model, float(energies[1]), ax, relative=True, **at),
            "Background rate over its value at the centre of the camera.",
            f"Image of the background rate in the camera at {energies[1]:.2g} TeV",
            has_colorbar=True,
            has_title=True,
        )
    ]
    if not rate_model.is_radial:
        shown = energies[[0, -1]]
        images += [
            _picture(
                lambda ax, energy=energy: plot_asymmetry(rate_model, float(energy), ax, beside=shown, **at),
                "How far the rate lies above or below the mean of its ring.",
                f"Asymmetry of the background rate in the camera at {energy:.2g} TeV",
                has_colorbar=True,
                has_title=True,
            )
            for energy in shown
        ]
    text = "FOV_LON grows with decreasing azimuth. Pictures end where the fit has no events."
    return _folded_section("model", "Model", _paragraph(text), _gallery([*curves, *images]))


def _cos_zeniths(rate_model, run_table):
    if rate_model.zenith_range is None:
        return [np.nan]
    low, high = rate_model.zenith_range
    zenith = np.asarray(run_table["ZENITH"][np.asarray(run_table["USED"], dtype=bool)], dtype=float)
    cos_zenith = np.cos(np.radians(zenith[np.isfinite(zenith)]))
    if high - low < 0.02 or not len(cos_zenith):
        return [0.5 * (low + high)]
    return [float(np.clip(z, low, high)) for z in (np.max(cos_zenith), np.median(cos_zenith), np.min(cos_zenith))]


def _n_trained(residuals, run_table) -> int:
    """How many of the runs have trained the model."""
    trained = run_keys(
        run_table[np.array([bool(r["USED"]) and str(r["ROLE"]) == "fit" for r in run_table], dtype=bool)]
    )
    return sum(len(found) > 0 for found in find_runs([run.key for run in residuals.runs], trained))


def _seen_by_fit(residuals, run_table) -> tuple[str, str]:
    """What the runs are to the fit, and what that says of the widths."""
    seen, n = _n_trained(residuals, run_table), len(residuals.runs)
    if seen:
        return "Runs of the fit" if seen == n else "Runs of the fit and others", (
            f"Trained: {seen} of these {n} runs have trained the model, which makes the stacked residuals narrower "
            "than those of unseen runs. A cross-validation (--cross-validate, with_cross_validation) shows how well "
            "unseen runs are predicted."
        )
    return "Runs that the fit has not seen", (
        f"Unseen: none of these {n} runs has trained the model; their own events have adapted it to them."
    )


def _camera(residuals) -> str:
    """Residuals in the camera frame."""
    scores, bands = residuals.camera_scores(), _bands_that_tell(significances(residuals)["camera"])
    maps = [
        _picture(
            lambda ax, k=k: plot_camera_residuals(scores[k], residuals.fov, ax),
            f"{_band_name(residuals, k)}: {in_thousands(residuals.counts[k].sum())} events.",
            f"Map of the significance of the residuals in the camera frame, {_band_name(residuals, k)}",
            has_colorbar=True,
        )
        for k in bands
    ]
    rows = [
        (_band_name(residuals, k), f"{residuals.counts[k].sum():.0f}", f"{residuals.expected[k].sum():.1f}")
        for k in range(len(scores))
    ]
    return _folded_section(
        "camera",
        "Residuals in the camera frame",
        _paragraph(f"Significance of counts against expectation in discs of {DISC_RADIUS:g} deg, all runs stacked."),
        _gallery([*maps, *([_histogram(residuals, scores, bands, "in the camera frame")] if bands else [])]),
        table(["energy", "counts", "expected"], rows, "Counts and expectation in the camera frame by energy"),
    )


def _sky(residuals) -> str:
    """Residuals in the sky, field by field."""
    fields = [f for f in residuals.fields if any(k not in residuals.failures for k in f.numbers)]
    fields = sorted(fields, key=lambda f: -f.expected.data.sum())
    maps = []
    for sky_field in fields[:_MOST_FIELDS]:
        image, center = score_image(sky_field), sky_field.counts.geom.center_skydir.icrs
        seen = np.argwhere(np.isfinite(image.data))
        if not len(seen):
            continue
        margin = min(seen.min(), (np.array(image.data.shape) - 1 - seen).min())
        image = image.crop(max(margin - 2, 0))
        n = len([k for k in sky_field.numbers if k not in residuals.failures])
        name = f"RA {center.ra.deg:.2f} deg, Dec {center.dec.deg:+.2f} deg: {counted(n, 'run')}"
        maps.append(
            _picture(
                lambda ax, image=image: plot_sky_residuals(image, ax),
                f"{name}, all energies.",
                f"Map of the significance of the residuals in the sky around {name}",
                has_colorbar=True,
                projection=image.geom.wcs,
            )
        )
    scores, bands = residuals.sky_scores(), _bands_that_tell(significances(residuals)["sky"])
    text = (
        f"Significance in discs of {DISC_RADIUS:g} deg, the runs of a field stacked, "
        "each with its own norm. Grey: excluded or not seen."
    )
    if len(fields) > _MOST_FIELDS:
        text += f" The {_MOST_FIELDS} fields with the most events of {len(fields)} are drawn; the histogram holds all."
    rows = [(_band_name(residuals, k), len(s)) for k, s in enumerate(scores)]
    return _folded_section(
        "sky",
        "Residuals in the sky",
        _paragraph(text),
        _gallery([*maps, *([_histogram(residuals, scores, bands, "in the sky")] if bands else [])]),
        table(["energy", "discs"], rows, "Discs in the sky by energy"),
    )


def _with_reference(config: AcceptanceConfig) -> dict[str, AcceptanceConfig]:
    """The configurations of a cross-validation: a plain radial model first, to which the gain of this one refers."""
    config = config.without_search()  # what was found is given as an exclusion instead
    reference = RadialOptions()
    if config.model.type == reference.type:
        return {"this model": config}
    shared = ("energy", "offset_max", "fov_alignment", "time_step", "exclusion", "observatory_location")
    options = {name: getattr(config, name) for name in shared}
    if config.zenith.type == "none":  # runs may have no zenith angle
        options["zenith"] = {"type": "none"}
    radial = AcceptanceConfig(model=reference, **options)
    return {_REFERENCE: radial, "this model": config}


def _cross_validation(result) -> str:
    """Held-out scores and significance."""
    if result is None:
        return ""
    scores = [
        (row["CONFIG"], f"{row['SCORE']:.0f}", f"{row['GAIN']:+.0f} ± {row['GAIN_ERR']:.0f}",
         f"{row['LOG_NORM_BIAS']:+.3f}", f"{row['LOG_NORM_STD']:.3f}", f"{row['FIT_TIME']:.1f}")
        for row in result.table
    ]  # fmt: skip
    header = ["model", "log-likelihood", "gain", "mean log norm", "scatter of log norm", "time of a fit [s]"]
    widths: dict[str, list[str]] = {}
    for row in result.significance:
        band = f"{row['FRAME']}, {row['E_MIN']:.3g} to {row['E_MAX']:.3g} TeV"
        widths.setdefault(band, []).append(f"{row['MEAN']:+.2f} / {row['WIDTH']:.2f}")
    names = [str(name) for name in result.table["CONFIG"]]
    return _section(
        "cross-validation",
        "Cross-validation",
        _paragraph(
            "Runs are left out of the fit in turn and predicted by it; what is fitted to the run itself is fitted to "
            "one half of its events and scored on the other. A higher log-likelihood is better."
        ),
        table(header, scores, "Held-out scores"),
        _folded(
            "Significance of the held-out runs by energy",
            table(
                ["mean / width", *names], [(band, *found) for band, found in widths.items()], "Held-out significance"
            ),
        ),
    )


def _exclusion(maker, residuals) -> str:
    """Regions and events that were not used."""
    options = maker.config.exclusion
    found_lines = Exclusion(maker.found_regions).lines()
    items = [line for line in maker.exclusion.lines() if line not in found_lines]
    if options.wobble_half is not False:
        items.append("the half of the camera with the source, of each run")
    found = maker.model.found
    items += [
        f"found in the data: circle around RA {row['RA']:.3f} deg, Dec {row['DEC']:+.3f} deg, radius "
        f"{row['RADIUS']:.2f} deg, {row['SIGNIFICANCE']:.1f} sigma"
        for row in found
    ]
    if len(found) and not found.meta.get("STABLE", True):
        items.append("the search in the data did not come to an end")
    unexcluded = np.array([run.unexcluded for run in residuals.runs])
    parts: list[str] = []
    if items:
        parts.append(
            _paragraph(
                f"{100 * residuals.excluded_share:.1f} % of the exposure of the field of view is excluded, "
                f"{100 * (1 - unexcluded.min()):.1f} % in the run where it is most. Margin: {options.margin}."
            )
        )
        shown = items[:_MOST_REGIONS]
        if len(items) > _MOST_REGIONS:
            shown.append(f"and {len(items) - _MOST_REGIONS} more")
        parts.append(_folded(f"List of what is excluded ({len(items)})", _listing("\n".join(shown))))
    elif not len(maker.known_sources):
        parts.append(_paragraph(f"No part of the sky was excluded: {WITHOUT_EXCLUSION}.", "warn"))
    dropped: Counter[str] = Counter()
    for run in residuals.runs:
        dropped.update(run.dropped)
    rows = [(text, dropped[name]) for name, text in _DROPPED.items() if dropped[name]]
    if rows:
        parts.append(table(["events not used", "number"], rows, "Events not used by reason"))
    lines = describe_sources(maker.model.source_table)
    if lines:
        parts += [
            "<h3>Sources beside the background</h3>",
            _paragraph(
                "They stand in the likelihood and in what is expected in the camera frame. The pictures of the sky "
                "leave them out."
            ),
            _listing("\n".join(lines)),
        ]
    return _folded_section("exclusion", "What was excluded", *parts)


def _configuration(maker) -> str:
    """Settings and versions."""
    versions = [("Python", platform.python_version())]
    versions += [(name, importlib.metadata.version(name)) for name in _PACKAGES]
    return _folded_section(
        "configuration",
        "Configuration and versions",
        _listing(maker.config.to_yaml()),
        table(["package", "version"], versions, "Versions"),
    )


# ---- Sections about runs ----

_EFFECTS = ("NORM", "SHIFT")
_CONDITIONS = ("MJD", "ZENITH", "MUONEFF")
_HOUR = 3600.0
_NO_SHARE = 0.05  # %, of the exposure: nothing
# column of the run table -> heading, factor and form of its numbers
_COLUMNS = {
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


def _with_covariates(run_table: Table, residuals) -> Table:
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


def _summary(maker, run_table: Table, residuals, validation, store: str) -> str:
    """The verdict, what to look at, and the figures of the fit."""
    used, rate = _used(run_table), maker.model.rate_model
    low, high = maker.model.energy_range.to_value("TeV")
    parts = _verdict(residuals, run_table, validation)
    if rate.not_converged:
        parts.append(_paragraph(f"{rate.not_converged[0].upper()}{rate.not_converged[1:]}.", "warn"))
    parts += _to_look_at(run_table, used)
    share = 100 * residuals.excluded_share
    excluded = f"{share:.1f} % of the exposure of the field of view"
    if not len(maker.exclusion) and not len(maker.known_sources) and share < _NO_SHARE:
        parts.append(_paragraph(f"No part of the sky was excluded: {WITHOUT_EXCLUSION}.", "warn"))
        excluded = "nothing"
    if rate.goodness:
        poor = any(fit.is_poor for fit in rate.goodness)
        parts.append(_paragraph(f"Goodness of fit: {describe_goodness(rate.goodness)}.", "warn" if poor else ""))
    zenith = f"{np.min(used['ZENITH']):.0f} to {np.max(used['ZENITH']):.0f} deg" if len(used) else "none"
    items = [
        ("Data store", store),
        ("Runs used in the fit", f"{len(used)} of {len(run_table)}, {np.sum(used['ONTIME']) / _HOUR:.1f} h"),
        ("Events of the fit", in_thousands(np.sum(used["COUNTS"]))),
        ("Excluded", excluded),
        *([("Sources in the likelihood", str(len(maker.known_sources)))] if len(maker.known_sources) else []),
        ("Model", f"{maker.config.model.type}{f'; {rate.convergence}' if rate.convergence else ''}"),
        ("Energies with events", f"{low:.3g} to {high:.3g} TeV"),
        ("Largest offset", f"{residuals.offset_max:.3g} deg"),
        ("Zenith angle of the runs", zenith),
    ]
    return _section("verdict", "Verdict", *parts, _facts(items))


def _to_look_at(run_table, used) -> list[str]:
    """Runs that stand apart, are flagged or were left out, the first of them."""
    parts, outliers = [], _outliers(used)
    if outliers:
        names = {str(row[0]) for row in outliers}
        rows = outliers[:_MOST_FLAGGED]
        more = (
            f" The first {len(rows)} of {len(outliers)} remarks; all are in Run effects."
            if len(outliers) > len(rows)
            else ""
        )
        parts.append(_paragraph(f"{counted(len(names), 'run')} to look at, of {len(used)}.{more}", "warn"))
        parts.append(table(["run", "what", "value", "standard deviations"], rows, "Runs to look at"))
    else:
        parts.append(_paragraph("No run is flagged and none stands apart."))
    left_out = len(run_table) - len(used)
    if left_out:
        parts.append(
            _paragraph(f"{counted(left_out, 'run')} left out of the fit; the reasons are below, under Runs.", "warn")
        )
    return parts


def _runs(run_table: Table, residuals) -> str:
    """Hours, the runs, and those that were left out."""
    used = _used(run_table)
    parts = []
    if len(used):
        parts.append(
            _gallery(
                [
                    _picture(
                        lambda ax: _plot_hours(ax, used["ZENITH"], used["ONTIME"], "zenith angle [deg]"),
                        "Hours of ontime by zenith angle.",
                        "Histogram of the hours of ontime over the zenith angle",
                    ),
                    _picture(
                        lambda ax: _plot_hours(ax, used["AZIMUTH"], used["ONTIME"], "azimuth [deg]"),
                        "Hours of ontime by azimuth of the pointing.",
                        "Histogram of the hours of ontime over the azimuth",
                    ),
                    _picture(
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
        parts.append(_paragraph("No run was left out of the fit."))
    if residuals.failures:
        parts.append("<h3>Left out of the residuals</h3>")
        parts.append(
            table(
                ["run", "reason"],
                [(f.name, f.reason) for f in residuals.failures.values()],
                "Runs left out of the residuals",
            )
        )
    columns = {name: spec for name, spec in _COLUMNS.items() if name in used.colnames}
    effects = [name for name in _EFFECTS if _varies(used, name)]
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
    parts.append(_folded(f"All {len(used)} runs", table(header, rows, "Runs of the fit") + described))
    return _folded_section("runs", "Runs", *parts)


def run_effects(run_table: Table) -> str:
    """Effects of the runs against their conditions, and the runs that stand apart."""
    used = _used(run_table)
    effects = [name for name in _EFFECTS if _varies(used, name)]
    conditions = [name for name in _CONDITIONS if name in used.colnames and _varies(used, name)]
    if not effects or not conditions:
        return _folded_section(
            "run-effects", "Run effects", _paragraph("This fit has no effects that differ from run to run.")
        )
    pictures = [
        _picture(
            lambda ax, effect=effect, condition=condition: plot_run_effect(used, effect, condition, ax),
            f"{LABELS[effect].capitalize()} of each run against {LABELS[condition].split(' [')[0]}.",
            f"{LABELS[effect]} of each run against {LABELS[condition]}",
        )
        for effect in effects
        for condition in conditions
    ]
    spreads = ", ".join(f"{LABELS[name]} {100 * np.nanstd(used[name]):.1f} %" for name in effects)
    parts = [
        _paragraph(
            f"What the events of each run say about it, beyond the model of the mean run. Scatter from run to run: "
            f"{spreads}. Runs that lie more than {OUTLIER:.0f} standard deviations from the median are red and named."
        ),
        _gallery(pictures),
    ]
    outliers = _outliers(used)
    if outliers:
        parts.append("<h3>Runs to look at</h3>")
        parts.append(table(["run", "what", "value", "standard deviations"], outliers, "Runs that stand apart"))
    else:
        parts.append(_paragraph("No run stands apart and none is flagged."))
    return _folded_section("run-effects", "Run effects", *parts)


def _outliers(used):
    rows = []
    for name in _EFFECTS:
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
    ax.hist(values[known], bins=12, weights=np.asarray(ontime, dtype=float)[known] / _HOUR, color="C0", alpha=0.8)
    ax.set(xlabel=label, ylabel="ontime [h]")


def _used(run_table):
    return run_table[np.asarray(run_table["USED"], dtype=bool)]


def _varies(used, name):
    values = np.asarray(used[name], dtype=float)
    values = values[np.isfinite(values)]
    return len(values) > 0 and (len(values) == 1 or np.ptp(values) > 0)


def _number(value, factor, form):
    return format(str(value) if form == "s" else value if factor is None else value * factor, form)


# ---- The page ----

_N_SCORE_BINS = 24
_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    model_or_maker,
    observations,
    path,
    *,
    exclusion=None,
    title: str | None = None,
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
    title : str, optional
        Of the page; default: "Background acceptance" and the name of the data store.
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
    if with_cross_validation and len(observations) < 2:
        raise InputError("with_cross_validation: one run has no others that predict it; leave it out")
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
            _with_reference(maker.config),
            exclusion=maker.exclusion,
            n_folds=min(5, len(observations)),
            energy_edges=np.geomspace(residuals.bands[0], residuals.bands[-1], 1 + _N_SCORE_BINS) * u.TeV,
            band_edges=residuals.bands * u.TeV,
            offset_max=0.92 * maker.config.offset_max,
            sky=True,
            n_jobs=n_jobs,
            parallel_backend=parallel_backend,
        )
    run_table = _with_covariates(run_table, residuals)
    stores = _stores(observations)
    store = ", ".join(map(str, stores)) if stores else "runs in memory"
    if title is None:
        # the last folder may be called "data"
        title = f"Background acceptance: {', '.join('/'.join(path.parts[-2:]) for path in stores)}".removesuffix(": ")
    sections = {
        "Verdict": _summary(maker, run_table, residuals, validation, store),
        "Counts": _counts(residuals),
        "Cross-validation": _cross_validation(validation),
        "Camera": _camera(residuals),
        "Sky": _sky(residuals),
        "Run effects": run_effects(run_table),
        "Model": _model(maker.model, residuals, run_table),
        "Plan": _plan(maker.model),
        "Runs": _runs(run_table, residuals),
        "Exclusion": _exclusion(maker, residuals),
        "Configuration": _configuration(maker),
    }
    text = _page(title, {name: text for name, text in sections.items() if text})
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), overwrite)


def _stores(observations) -> list[Path]:
    """Folders of the data stores that runs come from, each once; none for runs in memory."""
    locations = (location for observation in observations for location in event_locations(observation))
    return list(dict.fromkeys(Path(location.base_dir).absolute() for location in locations))


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
            f"model_or_maker: got {type(model_or_maker).__name__}, but an AcceptanceModel or an "
            "AcceptanceBackgroundMaker is needed"
        )
    maker = model_or_maker
    if exclusion is None:
        return maker
    return AcceptanceBackgroundMaker(maker.config, model=maker.model, exclusion=[maker.exclusion, exclusion])


def _page(title, sections):
    anchors = {name: name.lower().replace(" ", "-") for name in sections}
    now = datetime.datetime.now(datetime.UTC)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title),
        subtitle=escape(f"Report of gammapy_accmaker, {now:%Y-%m-%d %H:%M} UTC"),
        navigation="".join(f'<a href="#{anchor}">{escape(name)}</a>' for name, anchor in anchors.items()),
        sections="\n".join(sections.values()),
        footer=escape("Made by gammapy_accmaker. Rates are per ontime; field-of-view coordinates are gammapy's."),
    )
