"""Exact serial form of the spline model: a flat dictionary of arrays, without pickle."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields

import numpy as np

from gammapy_accmaker.models.bsplines import BSplineAxis
from gammapy_accmaker.models.spline.covariates import CovariateScale
from gammapy_accmaker.models.spline.effects import EffectBasis, RunEffect, RunPopulation
from gammapy_accmaker.models.spline.scaled_energy import ScaledEnergyAxis

_NODES = {c.__name__: c for c in (BSplineAxis, CovariateScale, EffectBasis, RunEffect, RunPopulation, ScaledEnergyAxis)}
_SEPARATOR, _TEXT, _TEXTS = "/", "text", "texts"
_STACKED, _COMMON = "*/", "=/"  # before the names of what all nodes of a tuple have, one by one, or the same


def pack(node, name: str = "") -> dict[str, np.ndarray]:
    """Arrays of a dataclass, of what it holds, and so on; the keys are paths of attribute names.

    Parameters
    ----------
    node : dataclass
        Of arrays, numbers, strings, tuples of them, and of the dataclasses of this model.
    name : str
        Path of the node.
    """
    arrays = {}
    for f in fields(node):
        value, key = getattr(node, f.name), name + f.name
        if type(value).__name__ in _NODES:
            arrays[key] = np.array("node " + type(value).__name__)
            arrays |= pack(value, key + _SEPARATOR)
        elif isinstance(value, tuple) and value and type(value[0]).__name__ in _NODES:
            arrays[key] = np.array(f"nodes {type(value[0]).__name__} {len(value)}")
            arrays |= _stack([pack(item) for item in value], key + _SEPARATOR)
        elif isinstance(value, tuple) and all(isinstance(item, str) for item in value):
            arrays[key] = np.array(f"{_TEXTS} {json.dumps(value)}")  # one text, also of many nodes
        elif isinstance(value, str):
            arrays[key] = np.array(f"{_TEXT} {json.dumps(value)}")  # a name may look like one of the words here
        elif isinstance(value, tuple):
            arrays[key] = np.array("tuple")
            arrays[key + _SEPARATOR] = np.array(value)
        else:
            arrays[key] = np.asarray(value)
    return arrays


def unpack(kind: type, arrays: dict[str, np.ndarray], name: str = ""):
    """The inverse of `pack` for a dataclass of this kind."""
    values = {}
    for f in fields(kind):
        key = name + f.name
        if key not in arrays and (f.default is not MISSING or f.default_factory is not MISSING):
            continue  # written before there was such a thing
        if key not in arrays:
            raise ValueError(
                f"{kind.__name__}: the array {key!r} is missing; the file is damaged or of another version"
            )
        value = np.asarray(arrays[key])
        text = str(value) if value.dtype.kind == "U" and value.ndim == 0 else ""
        word = text.split() or [""]
        if word[0] == "node":
            values[f.name] = unpack(_NODES[word[1]], arrays, key + _SEPARATOR)
        elif word[0] == "nodes":
            nodes = _unstack(arrays, key + _SEPARATOR, int(word[2]))
            values[f.name] = tuple(unpack(_NODES[word[1]], own) for own in nodes)
        elif word[0] == _TEXT:
            values[f.name] = str(json.loads(text.removeprefix(_TEXT)))
        elif word[0] == _TEXTS:
            values[f.name] = tuple(str(item) for item in json.loads(text.removeprefix(_TEXTS)))
        elif word == ["tuple"]:
            values[f.name] = tuple(arrays[key + _SEPARATOR].tolist())
        else:
            values[f.name] = value if value.ndim else value.item()
    return kind(**values)


def _stack(nodes, path):
    """Arrays of many nodes: what all have is one array, or is there once where it is the same for all."""
    arrays = {}
    for name in dict.fromkeys(name for own in nodes for name in own):
        values = {i: own[name] for i, own in enumerate(nodes) if name in own}
        first = next(iter(values.values()))
        alike = all(v.shape == first.shape and v.dtype.kind == first.dtype.kind for v in values.values())
        if len(values) == len(nodes) and alike:
            stacked = np.stack(list(values.values()))
            if all(row.tobytes() == stacked[0].tobytes() for row in stacked):
                arrays[path + _COMMON + name] = np.asarray(stacked[0])
                continue
            if stacked.dtype.kind != "U" or stacked.ndim == 1:  # a file has no tables of texts
                arrays[path + _STACKED + name] = stacked
                continue
        arrays |= {f"{path}{i}{_SEPARATOR}{name}": v for i, v in values.items()}
    return arrays


def _unstack(arrays, path, n):
    """The inverse of `_stack`."""
    own = {key.removeprefix(path): values for key, values in arrays.items() if key.startswith(path)}
    stacked = {name: values for name, values in own.items() if name.startswith(_STACKED)}
    if any(np.shape(values)[:1] != (n,) for values in stacked.values()) or not (stacked or n <= max(len(own), 1)):
        raise ValueError(f"{path}: the arrays are not those of {n} parts; the file is damaged")
    common = {name.removeprefix(_COMMON): values for name, values in own.items() if name.startswith(_COMMON)}
    nodes = [dict(common) for _ in range(n)]
    for name, values in stacked.items():
        for node, row in zip(nodes, values, strict=True):
            node[name.removeprefix(_STACKED)] = row
    for name in own.keys() - stacked.keys() - {_COMMON + name for name in common}:
        number, rest = name.split(_SEPARATOR, 1)
        nodes[int(number)][rest] = own[name]
    return nodes
