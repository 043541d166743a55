"""Reading of a configuration, and what is wrong in it: in one line a key, with what came and what is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from astropy.coordinates import Angle
from astropy.time import Time
from astropy.units import Quantity
from pydantic import BaseModel, ValidationError

from gammapy_accmaker.errors import InputError, InputTypeError
from gammapy_accmaker.utils.describe import as_html
from gammapy_accmaker.utils.files import as_path

_NEEDED = {
    Angle: "an angle such as '0.5 deg'",
    Quantity: "a quantity such as '1 TeV'",
    Time: "a time such as '2004-12-04 22:04:48'",
    Path: "the path of a file or folder",
}


# errors of pydantic for what is no mapping, and for a mapping without a known `type`
_NO_OPTIONS = {
    "model_type", "model_attributes_type", "dict_type", "union_tag_not_found", "union_tag_invalid",
}  # fmt: skip


def _read_config_file(path: str | Path, name: str) -> str:
    """Text of a configuration file; `name` is that of the class it is for."""
    path = as_path(path, "config")
    try:
        found = path.is_file()
    except (OSError, ValueError):  # too long, or no path at all
        found = False
    if not found:
        # gammapy's classes raise a TypeError for text in place of their options
        name_of_file = str(path)[:200]
        raise InputTypeError(
            f"config: got {name_of_file!r}, but there is no file {name_of_file}; write one with "
            f"`{name}().write(path)`, give options as a dict, or YAML text as `{name}.from_yaml(text)`"
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"config: {path} cannot be read as text ({error})") from error


def parse_yaml(text, needed: str) -> Mapping | None:
    """The options of YAML text, None where it is empty; ``needed``: the kind of keys that they have."""
    if not isinstance(text, str):
        raise InputError(f"config: got {type(text).__name__}, but YAML text is needed; `read` takes a path")
    try:
        options = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
        raise InputError(f"config: the text is not YAML ({error})") from error
    if not isinstance(options, Mapping | None):
        raise InputError(f"config: got {text[:100]!r}, but YAML with {needed} is needed; `read` takes a path")
    return options


class ConfigFile:
    """A configuration that is read from a YAML file, and shown in notebooks; goes before the class of its options."""

    @classmethod
    def read(cls: Any, path):
        """Configuration from a YAML file.

        Parameters
        ----------
        path : str or `~pathlib.Path`
            Of the file.

        Returns
        -------
        config : configuration of this class

        Raises
        ------
        InputError
            Where there is no such file, or for what is wrong in it.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> config = AcceptanceConfig.read("acceptance.yaml")  # doctest: +SKIP
        """
        text = _read_config_file(path, cls.__name__)
        try:
            return cls.from_yaml(text)
        except InputError as error:
            raise type(error)(f"config: {path}: {str(error).removeprefix('config: ')}") from error

    def _repr_html_(self: Any):
        return as_html(type(self).__name__, [("changed", repr(self)), ("all options", self.to_yaml())])


def explain(error: ValidationError, cls: type[BaseModel], prefix: str = "") -> str:
    """All errors of a validation, with the full key of each; ``prefix`` is the key that the options are found at."""
    return "; ".join(_line(one, cls, prefix) for one in error.errors())


def find_key(cls: type[BaseModel], data: Mapping) -> str:
    """The key whose value alone cannot be used, for the errors that pydantic does not report by key."""
    leaves = list(_leaves(data))
    if len(leaves) == 1:
        ((keys, value),) = leaves
        return f"{'.'.join(keys)}: got {value!r}{_what_is_needed(cls, keys)}"
    for keys, value in leaves:
        nested = value
        for key in reversed(keys):
            nested = {key: nested}
        try:
            cls(**nested)
        except ValidationError:
            continue  # reported elsewhere
        except InputError as error:  # from here, for one key
            return str(error)
    return "config: its values cannot be used together"


def _line(error, cls, prefix):
    keys = error["loc"]
    path = ".".join(filter(None, (prefix, *_names(cls, keys))))
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = sorted({name for model in _models_at(cls, keys[:-1]) for name in model.model_fields})
        close = get_close_matches(str(keys[-1]), known, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        return f"{path}: unknown key; {meant}known are {', '.join(known)}"
    if error["type"] == "value_error" and (not keys or message.startswith(path)):
        # one of ours, which names its key
        return f"{prefix}.{message}" if prefix and not message.startswith(prefix) else message
    if error["type"] in _NO_OPTIONS:
        return f"{path or 'config'}: got {error['input']!r}, but {_options_needed(cls, keys, error['input'])}"
    # ours say themselves what came; of those on several keys, the input is all of the options
    says_it = error["type"] == "missing" or message.startswith("got ")
    says_it |= error["type"] == "value_error" and isinstance(error["input"], Mapping)
    got = "" if says_it else f"got {error['input']!r}. "
    needed = "" if "needed" in message else _what_is_needed(cls, keys)
    return f"{path or 'config'}: {got}{message}{needed}"


def _options_needed(cls, keys, given) -> str:
    """What is needed where something else than options was given, or options without their type."""
    models = _models_at(cls, keys)
    types = [
        t for model in models if "type" in model.model_fields for t in get_args(model.model_fields["type"].annotation)
    ]
    if not types:
        names = [name for model in models for name in model.model_fields]
        return f"options by their names are needed{': ' if names else ''}{', '.join(names)}"
    asked = given if isinstance(given, str) else given.get("type") if isinstance(given, Mapping) else None
    close = get_close_matches(str(asked), types, n=1)
    name = keys[-1] if keys else "config"
    return f"`{name}: {{type: {close[0] if close else types[0]}}}` is needed, with one of the types {', '.join(types)}"


def _names(cls, keys) -> Iterator[str]:
    """The keys as they stand in a file; pydantic puts the type of a union between."""
    for i, key in enumerate(keys):
        if not any(_is_of_type(model, key) for model in _models_at(cls, keys[:i])):
            yield str(key)


def _what_is_needed(cls, keys):
    *parents, last = keys or (None,)
    for model in _models_at(cls, parents):
        if last in model.model_fields:
            types = set(_types_in(model.model_fields[last].annotation))
            for kind, needed in _NEEDED.items():
                if kind in types:
                    return f"; {needed} is needed"
    return ""


def _models_at(cls, keys) -> list[type[BaseModel]]:
    """Classes of options that can be at a path of keys; those of a union are told by their ``type``."""
    models = [cls]
    for key in keys:
        found = [model.model_fields[key].annotation for model in models if key in model.model_fields]
        if found:
            models = [t for annotation in found for t in _types_in(annotation) if issubclass(t, BaseModel)]
        else:
            models = [model for model in models if _is_of_type(model, key)]
    return models


def _is_of_type(model, name):
    return "type" in model.model_fields and model.model_fields["type"].default == name


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


def _leaves(data, keys=()):
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*keys, str(key)))
        else:
            yield (*keys, str(key)), value
