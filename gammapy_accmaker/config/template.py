"""Options as commented YAML, and as tables for a reference, from the docstrings and the types of their pydantic
models."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

_INDENT, _WIDTH = "  ", 100


def commented_yaml(options: BaseModel, documented: Mapping[str, BaseModel] | None = None) -> str:
    """YAML text that loads as ``options``, with a comment on each group of options and the choices of each.

    Parameters
    ----------
    options : `~pydantic.BaseModel`
        What is written.
    documented : mapping of `~pydantic.BaseModel`, optional
        By name such as ``datasets.background.parameters``: the options behind what is a plain mapping in ``options``.
    """
    return "\n".join(_lines(options, dict(documented or {}), "", 0)).lstrip("\n") + "\n"


@dataclass(frozen=True)
class OptionRow:
    """A key of a group of options: its default as YAML, its choices where they are few, and what it says."""

    key: str
    default: str
    choices: tuple[str, ...]
    description: str


@dataclass(frozen=True)
class OptionGroup:
    """A group of options as a reference shows it.

    Attributes
    ----------
    title : str
        Where the group stands, such as ``zenith: {type: binned}``; empty for the whole configuration.
    summary : str
        What comes before the keys in its docstring.
    options : tuple of `OptionRow`
        Its keys, without the ``type`` by which the group is chosen.
    """

    title: str
    summary: str
    options: tuple[OptionRow, ...]


def option_groups(cls: type[BaseModel], path: str = "") -> Iterator[OptionGroup]:
    """The groups of options of a configuration, in the order of its keys, each before the groups inside of it.

    Parameters
    ----------
    cls : type
        Pydantic model of the options.
    path : str
        Key of the group, such as ``exclusion.catalog``; empty for the whole configuration.
    """
    described, tag = _attributes(cls), _tag(cls)
    fields = {name: field for name, field in cls.model_fields.items() if not (name == "type" and tag)}
    rows = (
        OptionRow(name, _default(field), tuple(_choices(field)), described.get(name, ""))
        for name, field in fields.items()
    )
    title = f"{path}: {{type: {tag}}}" if path and tag else path
    yield OptionGroup(title, _summary(cls), tuple(rows))
    for name, field in fields.items():
        for group in _classes(field.annotation):
            yield from option_groups(group, f"{path}.{name}" if path else name)


def _default(field):
    """The default of a field as YAML on one line; of a group only by what it is chosen."""
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        tag = getattr(value, "type", None)
        return f"{{type: {tag}}}" if tag else "{...}"
    if not isinstance(value, (str, int, float, list, dict, tuple, type(None))):
        value = str(value)
    return _flow(value)


def _flow(value):
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("\n...\n").rstrip("\n")


def _lines(options, documented, path, depth, alternatives=()):
    data, described = options.model_dump(mode="json"), _attributes(type(options))
    pad = _INDENT * depth
    for name, field in type(options).model_fields.items():
        full = f"{path}.{name}" if path else name
        child = documented.get(full, getattr(options, name))
        groups = _classes(field.annotation)
        text = described.get(name, "")
        if child is None and groups and not text:  # a group of options that is not used
            text = f"null, or options: {_summary(groups[0])}"
        if depth == 0:
            yield ""
        if name not in data:  # left out of files where it is not used
            yield from _comment(text, pad)
            yield f"{pad}# {name}: null"
            continue
        if not isinstance(child, BaseModel):
            yield from _comment(text, pad)
            choices = [_tag(cls) for cls in alternatives] if name == "type" and alternatives else _choices(field)
            yield f"{pad}{name}: {_flow(data[name])}" + (f"  # {' | '.join(choices)}" if choices else "")
            continue
        others = [cls for cls in groups if _tag(cls) is not None]
        yield from _comment(text or _summary(type(child)), pad)
        if len(others) > 1:
            for cls in others:
                if cls is not type(child):
                    yield from _comment(f"{_tag(cls)}: {_summary(cls)}", pad, _INDENT)
        yield f"{pad}{name}:"
        yield from _lines(child, documented, full, depth + 1, others if len(others) > 1 else ())


def _comment(text, pad, indent=""):
    first = f"{pad}# {indent}"
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=first + _INDENT * bool(indent))


def _documentation(cls):
    """Docstring of a class, or of the nearest of its parents that has options."""
    for parent in cls.__mro__:
        if parent.__doc__ and getattr(parent, "model_fields", None):
            return inspect.cleandoc(parent.__doc__)
    return ""


def _plain(text):
    """Text without the marks of reStructuredText."""
    text = re.sub(r"`~?(?:[\w]+\.)*(\w+)`", r"\1", text.replace("``", ""))
    return " ".join(text.split())


def _summary(cls):
    """What comes before the first heading of the docstring."""
    return _plain(re.split(r"\n\w[\w ]*\n-{3,}\n", _documentation(cls))[0])


def _attributes(cls):
    """Descriptions by name, from the numpydoc sections "Parameters" and "Attributes" of a class and its parents."""
    described: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        parts = re.split(r"(?:^|\n)(\w[\w ]*)\n-{3,}\n", inspect.cleandoc(parent.__doc__ or ""))
        sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        text = f"{sections.get('Parameters', '')}\n{sections.get('Attributes', '')}\n"
        found = re.findall(r"^(\w+(?:, \w+)*) :.*\n((?:[ ]+.*\n?|\n)+)", text, flags=re.MULTILINE)
        described |= {name: _plain(description) for names, description in found for name in names.split(", ")}
    return described


def _classes(annotation):
    """Groups of options that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [cls for part in get_args(annotation) for cls in _classes(part)]
    return []


def _tag(cls):
    """The type by which a group is told from its alternatives."""
    field = cls.model_fields.get("type")
    choices = [] if field is None else _choices(field)
    return choices[0] if len(choices) == 1 else None


def _choices(field):
    """Values that an option may have, where they are few."""
    return list(dict.fromkeys(_values(field.annotation)))


def _values(annotation):
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [str(member.value) for member in annotation]
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) in (Union, UnionType, Annotated, list):
        return [value for part in get_args(annotation) for value in _values(part)]
    return []
