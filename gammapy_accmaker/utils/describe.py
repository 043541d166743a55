"""How objects describe themselves: facts, each with a name and a value, as text and as HTML for notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterable

_WIDTH = 11  # of the names in text


def as_text(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """An underlined title and a line for each fact; a value of several lines is set in below its name."""
    lines = [title, "-" * len(title), ""]
    for name, value in facts:
        if "\n" in value:
            lines += [f"  {name:{_WIDTH}s} :", *(f"    {line}".rstrip() for line in value.splitlines())]
        else:
            lines.append(f"  {name:{_WIDTH}s} : {value}")
    return "\n".join(lines) + "\n"


def as_html(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A table of the facts; a value of several lines is folded."""
    rows = "".join(
        f'<tr><th style="text-align: left; vertical-align: top; white-space: nowrap">{html.escape(name)}</th>'
        f'<td style="text-align: left">{_cell(value)}</td></tr>'
        for name, value in facts
    )
    return f"<strong>{html.escape(title)}</strong><table>{rows}</table>"


def _cell(value):
    text = html.escape(value)
    if "\n" not in value:
        return text
    n = len(value.splitlines())
    return f'<details><summary>{n} lines</summary><pre style="text-align: left">{text}</pre></details>'


def counted(number: int, word: str) -> str:
    """A number with its word, in the plural where it is not 1."""
    return f"{number} {word}" + ("s" if number != 1 else "")


def in_thousands(number: float) -> str:
    """A count with a space between the thousands."""
    return f"{number:,.0f}".replace(",", " ")


def in_percent(share: float) -> str:
    """A share in % with two digits; what rounding leaves of nothing is 0."""
    percent = round(100 * share, 3)
    return f"{percent:.0f} %" if abs(percent) >= 10 else f"{percent + 0:.2g} %"


def as_call(name: str, options: dict) -> str:
    """The call that makes an object with these options."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})"
