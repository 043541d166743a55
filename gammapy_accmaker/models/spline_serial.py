"""Exact serial form of the spline model: a flat dictionary of arrays, without pickle."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from gammapy_accmaker.models.bsplines import BSplineAxis
from gammapy_accmaker.models.covariates import CovariateScale
from gammapy_accmaker.models.run_effects import EffectBasis, RunEffect, RunPopulation
from gammapy_accmaker.models.scaled_energy import ScaledEnergyAxis

__all__ = ["pack", "unpack"]

NODES = {c.__name__: c for c in (BSplineAxis, CovariateScale, EffectBasis, RunEffect, RunPopulation, ScaledEnergyAxis)}
SEPARATOR = "/"


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
        if type(value).__name__ in NODES:
            arrays[key] = np.array("node " + type(value).__name__)
            arrays |= pack(value, key + SEPARATOR)
        elif isinstance(value, tuple) and value and type(value[0]).__name__ in NODES:
            arrays[key] = np.array(f"nodes {type(value[0]).__name__} {len(value)}")
            for i, item in enumerate(value):
                arrays |= pack(item, f"{key}{SEPARATOR}{i}{SEPARATOR}")
        elif isinstance(value, tuple) and not value:
            arrays[key] = np.array("empty tuple")
        elif isinstance(value, tuple):
            arrays[key] = np.array("tuple")
            arrays[key + SEPARATOR] = np.array(value)
        else:
            arrays[key] = np.asarray(value)
    return arrays


def unpack(kind: type, arrays: dict[str, np.ndarray], name: str = ""):
    """The inverse of `pack` for a dataclass of this kind."""
    values = {}
    for f in fields(kind):
        key = name + f.name
        if key not in arrays:
            raise ValueError(
                f"{kind.__name__}: the array {key!r} is missing; the file is damaged or of another version"
            )
        value = np.asarray(arrays[key])
        word = str(value).split() if value.dtype.kind == "U" and value.ndim == 0 else [""]
        if word[0] == "node":
            values[f.name] = unpack(NODES[word[1]], arrays, key + SEPARATOR)
        elif word[0] == "nodes":
            paths = [f"{key}{SEPARATOR}{i}{SEPARATOR}" for i in range(int(word[2]))]
            values[f.name] = tuple(unpack(NODES[word[1]], arrays, path) for path in paths)
        elif word == ["empty", "tuple"]:
            values[f.name] = ()
        elif word == ["tuple"]:
            values[f.name] = tuple(arrays[key + SEPARATOR].tolist())
        else:
            values[f.name] = value if value.ndim else value.item()
    return kind(**values)
