"""Pieces of a self-contained HTML page: escaped text, tables, pictures as data. No scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

__all__ = ["escape", "facts", "folded", "gallery", "listing", "paragraph", "picture", "section", "table"]

STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 9,
}
SIZE, DPI = (4.6, 3.7), 150  # inches


def escape(text) -> str:
    """Text that is shown as it is, whatever it holds."""
    return html.escape(str(text), quote=True)


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def section(anchor: str, title: str, *parts: str) -> str:
    """A section with a heading; the parts are HTML."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def folded(summary: str, *parts: str) -> str:
    """What is shown when the reader opens it; the parts are HTML."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Tiles, each with a name and a value."""
    tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in items)
    return f'<dl class="facts">{tiles}</dl>'


def listing(text: str) -> str:
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
        float(text.split(" ± ")[0] or "nan")
    except ValueError:
        return False
    return True


def picture(draw: Callable, caption: str, alt: str, *, has_colorbar: bool = False, projection=None) -> str:
    """A figure with a picture in it.

    Parameters
    ----------
    draw : callable
        Called with axes to draw on.
    caption, alt : str
        Below the picture, and in place of it.
    has_colorbar : bool
        Whether room for its numbers is left.
    projection : `~astropy.wcs.WCS`, optional
        Of the axes.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        # margins that suit all pictures: they line up side by side, and finding the margins of each takes twice the time
        figure.subplots_adjust(left=0.17, right=0.93 if has_colorbar else 0.97, bottom=0.15, top=0.96)
        draw(figure.add_subplot(projection=projection))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=DPI)
    width, height = (int(np.round(side * DPI)) for side in SIZE)
    data = base64.b64encode(png.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def gallery(pictures: Iterable[str]) -> str:
    """Pictures side by side, as many as the page is wide for."""
    return f'<div class="gallery">{"".join(pictures)}</div>'
