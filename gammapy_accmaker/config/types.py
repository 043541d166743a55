"""Types of the options: quantities, edges, places, models and paths, checked where they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation
from gammapy.modeling.models import Model, SpatialModel, SpectralModel
from gammapy.utils.observers import observatory_locations
from gammapy.utils.scripts import make_path
from gammapy.utils.types import AngleType, EnergyType
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer


def _naming(validate):
    """A validator whose every error is a ValueError: only those does pydantic report with the name of the option."""

    def validate_or_refuse(value):
        try:
            return validate(value)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"got {value!r}, which cannot be used ({error})") from error

    return validate_or_refuse


def _of_type(unit):
    @_naming
    def validate(value):
        value = u.Quantity(value)
        if not value.unit.is_equivalent(unit):
            raise ValueError(f"got {value}, but a quantity in units such as '{unit}' is needed")
        if not (value.isscalar and np.isfinite(value.value)):
            raise ValueError(f"got {value}, but one finite value is needed")
        return value

    return validate


def _edges_of_type(unit):
    @_naming
    def validate(value):
        if isinstance(value, (list, tuple)):
            value = u.Quantity([u.Quantity(v) for v in value])
        value = u.Quantity(value)
        if not value.unit.is_equivalent(unit):
            raise ValueError(f"got {value}, but edges in units such as '{unit}' are needed")
        if (
            value.ndim != 1
            or len(value) < 2
            or not np.all(np.isfinite(value.value))
            or not np.all(np.diff(value.value) > 0)
        ):
            raise ValueError(f"got {value}, but at least two increasing, finite edges are needed")
        return value

    return validate


@_naming
def _number_or_quantity(value):
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = float(value)
    else:
        value = u.Quantity(value)
    if not (np.ndim(value) == 0 and np.isfinite(u.Quantity(value).value)):
        raise ValueError(f"got {value}, but one finite number or quantity is needed")
    return value


def _edges_to_strings(value):
    return [f"{v} {value.unit}" for v in value.value]


def _with_unit(key, value, unit):
    quantity = u.Quantity(value)
    if not quantity.unit.is_equivalent(unit):
        raise ValueError(f"got {value!r} for {key}, but a quantity in units such as '{unit}' is needed")
    return quantity


@_naming
def _location(value):
    if value is None or isinstance(value, EarthLocation):
        return value
    if isinstance(value, str):
        if value not in observatory_locations:
            raise ValueError(
                f"got {value!r}, but a name of {sorted(observatory_locations)}, or lon, lat and height are needed"
            )
        return observatory_locations[value]
    if isinstance(value, dict) and set(value) == {"lon", "lat", "height"}:
        units = {"lon": "deg", "lat": "deg", "height": "m"}
        return EarthLocation.from_geodetic(*(_with_unit(key, value[key], unit) for key, unit in units.items()))
    raise ValueError(f"got {value!r}, but a name, or a mapping with lon, lat and height is needed")


def _location_to_dict(value):
    geodetic = value.geodetic
    # the way to geocentric coordinates and back leaves rounding errors, which a second round trip must not change
    height = round(geodetic.height.to_value("m"), 3)
    return {
        "lon": f"{round(geodetic.lon.deg, 9)} deg",
        "lat": f"{round(geodetic.lat.deg, 9)} deg",
        "height": f"{height} m",
    }


def _as_model(value, kind):
    """A gammapy model from its name or its dictionary; anything else as it is."""
    if isinstance(value, str):
        return Model.create(tag=value, model_type=kind)
    return Model.from_dict({kind: value.get(kind, value)}) if isinstance(value, dict) else value


@_naming
def _norm_spectral_model(value):
    value = _as_model(value, "spectral")
    if not isinstance(value, SpectralModel) or not value.is_norm_spectral_model:
        raise ValueError(f"got {value!r}, but a norm spectral model such as 'pl-norm' or 'piecewise-norm' is needed")
    return value


@_naming
def _spatial_model(value):
    value = _as_model(value, "spatial")
    if value is not None and not isinstance(value, SpatialModel):
        raise ValueError(f"got {value!r}, but a spatial model or its name is needed")
    return value


def _path(value):
    if not isinstance(value, (str, Path)):
        raise ValueError(f"got {value!r}, but the path of a file is needed")
    return make_path(value)


# Checked here first: gammapy's types let some errors through without the option's name, and take infinite energies.
OneAngle = Annotated[AngleType, BeforeValidator(_of_type("deg"))]
OneEnergy = Annotated[EnergyType, BeforeValidator(_of_type("TeV"))]
OnePath = Annotated[Path, BeforeValidator(_path)]  # gammapy's would write a list as one string


AngleEdges = Annotated[
    u.Quantity, BeforeValidator(_edges_of_type("deg")), PlainSerializer(_edges_to_strings, when_used="json")
]
EnergyEdges = Annotated[
    u.Quantity, BeforeValidator(_edges_of_type("TeV")), PlainSerializer(_edges_to_strings, when_used="json")
]
TimeStep = Annotated[u.Quantity, BeforeValidator(_of_type("s")), PlainSerializer(str, when_used="json")]
Limit = Annotated[
    float | u.Quantity,
    BeforeValidator(_number_or_quantity),
    PlainSerializer(lambda v: str(v) if isinstance(v, u.Quantity) else v, when_used="json"),
]
Location = Annotated[EarthLocation, BeforeValidator(_location), PlainSerializer(_location_to_dict, when_used="json")]
NormModel = Annotated[
    SpectralModel,
    BeforeValidator(_norm_spectral_model),
    PlainSerializer(lambda m: m.to_dict(full_output=True)["spectral"], when_used="json"),
]
SpatialNorm = Annotated[
    Any,
    BeforeValidator(_spatial_model),
    PlainSerializer(lambda m: None if m is None else m.to_dict(full_output=True)["spatial"], when_used="json"),
]


class Options(BaseModel):
    """Refuses unknown keys; an option is changed by `AcceptanceConfig.update`, not in place."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, validate_default=True)

    def __eq__(self, other):
        # as they are written: energies and functions have no == that says yes or no
        if type(self) is not type(other):
            return NotImplemented
        return self.model_dump(mode="json") == other.model_dump(mode="json")

    def __hash__(self):
        return hash(self.model_dump_json())
