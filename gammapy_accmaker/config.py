"""The configuration: pydantic options at the edge of the package; the numerics never see it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
import numpy as np
import yaml
from astropy.coordinates import EarthLocation
from gammapy.modeling.models import Model, SpatialModel, SpectralModel
from gammapy.utils.observers import observatory_locations
from gammapy.utils.scripts import make_path
from gammapy.utils.types import AngleType, EnergyType
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from gammapy_accmaker.errors import InputError
from gammapy_accmaker.files import write_atomically

__all__ = ["AcceptanceConfig"]


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


def _edges_to_strings(value):
    return [f"{v} {value.unit}" for v in value.value]


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
        return EarthLocation.from_geodetic(*(u.Quantity(value[k]) for k in ("lon", "lat", "height")))
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


@_naming
def _norm_spectral_model(value):
    if isinstance(value, str):
        value = Model.create(tag=value, model_type="spectral")
    elif isinstance(value, dict):
        value = Model.from_dict({"spectral": value.get("spectral", value)})
    if not isinstance(value, SpectralModel) or not value.is_norm_spectral_model:
        raise ValueError(f"got {value!r}, but a norm spectral model such as 'pl-norm' or 'piecewise-norm' is needed")
    return value


@_naming
def _spatial_model(value):
    if isinstance(value, str):
        value = Model.create(tag=value, model_type="spatial")
    elif isinstance(value, dict):
        value = Model.from_dict({"spatial": value.get("spatial", value)})
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


class _Options(BaseModel):
    """Refuses unknown keys; an option is changed by `AcceptanceConfig.update`, not in place."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, validate_default=True)


class SplineOptions(_Options):
    """Smooth rate over energy, offset and zenith angle with an asymmetry: the joint model, adapted to each run.

    ``covariates``: keywords of the event header, such as MUONEFF, that norm and energy scale may follow.
    """

    type: Literal["spline"] = "spline"
    covariates: list[str] = ["MUONEFF"]


class RadialOptions(_Options):
    """Rate over energy and offset; ``offset_bins``: rings from 0 to offset_max, or their edges."""

    type: Literal["radial"] = "radial"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12

    @model_validator(mode="after")
    def _from_zero(self):
        if not isinstance(self.offset_bins, int) and self.offset_bins[0] < 0:
            raise ValueError(f"offset_bins: got {self.offset_bins}, but offsets >= 0 are needed")
        return self


class GridOptions(_Options):
    """Rate over energy and a square grid; ``offset_bins``: bins from the centre to offset_max (24 x 24 for 12), or edges."""

    type: Literal["grid"] = "grid"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12


class EnergyOptions(_Options):
    """Energy axis of the fitted model."""

    min: OneEnergy = u.Quantity("0.1 TeV")
    max: OneEnergy = u.Quantity("100 TeV")
    nbins_per_decade: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _ordered(self):
        if not 0 * u.TeV < self.min < self.max:
            raise ValueError(f"got min {self.min} and max {self.max}, but 0 < min < max is needed")
        return self


class ZenithOptions(_Options):
    """How the rate follows the zenith angle of the pointing."""

    type: Literal["none", "continuous"] = "continuous"


class AzimuthOptions(_Options):
    """How the rate follows the azimuth of the pointing."""

    type: Literal["none"] = "none"


class RunEffectsOptions(_Options):
    """What differs from run to run and is taken from the run's own unexcluded events.

    ``norm``: a factor; ``tilt``: and a power law; ``shift``: and instead of it an energy shift, a smooth spectral
    residual and, with ``gradient``, gradients over the field of view. ``tilt`` and ``shift`` need the spline model.
    ``min_counts``: a run is adapted to by the energies (in groups of 0.1 dex) in which it has so many unexcluded events.
    """

    type: Literal["none", "norm", "tilt", "shift"] = "shift"
    gradient: bool = True
    min_counts: Annotated[int, Field(ge=0)] = 0


class NoRenormalization(_Options):
    """The background is left as the model predicts it."""

    type: Literal["none"] = "none"


class FovRenormalization(_Options):
    """`~gammapy.makers.FoVBackgroundMaker` outside of the exclusion; ``fit_options`` go to `~gammapy.modeling.Fit`.

    ``prior``: a Gaussian prior on norm and tilt of the model that stays on the dataset, as wide as the acceptance is sure.
    """

    type: Literal["fov"] = "fov"
    method: Literal["scale", "fit"] = "scale"
    spectral_model: NormModel = "pl-norm"
    spatial_model: SpatialNorm = None
    min_counts: float = 0
    min_npred_background: float = 0
    fit_options: dict[str, Any] = {}
    prior: bool = False


class RingRenormalization(_Options):
    """`~gammapy.makers.RingBackgroundMaker` outside of the exclusion; for datasets with one energy bin."""

    type: Literal["ring"] = "ring"
    r_in: OneAngle = "0.5 deg"
    width: OneAngle = "0.3 deg"


class AdaptiveRingRenormalization(_Options):
    """`~gammapy.makers.AdaptiveRingBackgroundMaker` outside of the exclusion; for datasets with one energy bin."""

    type: Literal["adaptive_ring"] = "adaptive_ring"
    r_in: OneAngle = "0.5 deg"
    r_out_max: OneAngle = "1.5 deg"
    width: OneAngle = "0.3 deg"
    stepsize: OneAngle = "0.02 deg"
    threshold_alpha: float = 0.1
    theta: OneAngle = "0.22 deg"
    method: Literal["fixed_width", "fixed_r_in"] = "fixed_width"


class ExclusionOptions(_Options):
    """Sky positions left out of the fit, of the run effects and of the renormalisation.

    ``regions``: one or more region files; ``mask``: a map file that is False where excluded; ``margin``: around both.
    """

    regions: OnePath | list[OnePath] | None = None
    mask: OnePath | None = None
    margin: OneAngle = "0 deg"
    iterative: None = None

    @model_validator(mode="after")
    def _files_exist(self):
        for path in self.files():
            if not path.is_file():
                raise ValueError(f"there is no file {path}; give the path of an existing one")
        return self

    def files(self) -> list[Path]:
        """All files that are named."""
        regions = self.regions if isinstance(self.regions, list) else [self.regions]
        return [path for path in (*regions, self.mask) if path is not None]


class AcceptanceConfig(_Options):
    """Options of an acceptance fit and of its application; each has a default.

    Quantities are given as strings such as ``"2.5 deg"``.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceConfig
    >>> config = AcceptanceConfig(model={"type": "grid"}, offset_max="2 deg")
    >>> config.offset_max
    <Angle 2. deg>
    """

    model: Annotated[SplineOptions | RadialOptions | GridOptions, Field(discriminator="type")] = SplineOptions()
    energy: EnergyOptions = EnergyOptions()
    offset_max: OneAngle = "2.5 deg"
    fit_energy: EnergyEdges | None = None
    fov_alignment: Literal["altaz", "radec"] = "altaz"
    zenith: ZenithOptions = ZenithOptions()
    azimuth: AzimuthOptions = AzimuthOptions()
    time_step: TimeStep | None = u.Quantity("1 min")
    run_effects: RunEffectsOptions = RunEffectsOptions()
    renormalization: Annotated[
        NoRenormalization | FovRenormalization | RingRenormalization | AdaptiveRingRenormalization,
        Field(discriminator="type"),
    ] = NoRenormalization()
    exclusion: ExclusionOptions = ExclusionOptions()
    observatory_location: Location | None = None

    @model_validator(mode="after")
    def _consistent(self):
        if not 0 < self.offset_max.deg < 90:
            raise ValueError(f"offset_max: got {self.offset_max}, but an angle between 0 and 90 deg is needed")
        if self.fit_energy is not None and self.fit_energy[0] <= 0:
            raise ValueError(f"fit_energy: got {self.fit_energy}, but energies > 0 are needed")
        if self.time_step is not None and self.time_step_seconds < 1:
            raise ValueError(f"time_step: got {self.time_step}, but at least 1 s is needed")
        if self.model.type in ("radial", "grid"):
            for key in ("zenith", "run_effects"):
                self._for_binned(key)
        elif self.fit_energy is not None:
            raise ValueError(
                "fit_energy: got edges, but the spline model has fine bins of its own; leave it null or use another model"
            )
        return self

    def _for_binned(self, key):
        """Binned models have no zenith dependence and no more effects than a norm: their default, an error if asked for."""
        options, known = getattr(self, key), {"zenith": ("none",), "run_effects": ("none", "norm")}[key]
        if options.type in known:
            return
        if key in self.model_fields_set and "type" in options.model_fields_set:
            raise ValueError(
                f"{key}: {options.type!r} needs the model type 'spline', but got {self.model.type!r}; use one of {known}"
            )
        object.__setattr__(self, key, type(options)(type=known[-1]))

    @property
    def time_step_seconds(self) -> float | None:
        """The time step in s; None for one step a run."""
        return None if self.time_step is None else self.time_step.to_value("s")

    @classmethod
    def coerce(cls, config) -> AcceptanceConfig:
        """A configuration from None (all defaults), a mapping or a configuration; `InputError` names a wrong key."""
        if isinstance(config, cls):
            return config
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise InputError(f"config: got {type(config).__name__}, but an AcceptanceConfig, a dict or None is needed")
        try:
            return cls(**config)
        except ValidationError as error:
            lines = [f"{'.'.join(str(k) for k in e['loc']) or 'config'}: {e['msg']}" for e in error.errors()]
            raise InputError("config: " + "; ".join(lines)) from error

    @classmethod
    def from_yaml(cls, text: str) -> AcceptanceConfig:
        """Configuration from YAML (or JSON) text."""
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"config: the text is not YAML ({error})") from error
        return cls.coerce(data)

    @classmethod
    def read(cls, path) -> AcceptanceConfig:
        """Configuration from a YAML file."""
        path = make_path(path)
        if not path.is_file():
            raise InputError(f"config: there is no file {path}; write one with `AcceptanceConfig().write(path)`")
        return cls.from_yaml(path.read_text())

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def write(self, path, overwrite: bool = False) -> None:
        """Write a YAML file."""
        write_atomically(make_path(path), lambda temporary: temporary.write_text(self.to_yaml()), overwrite)

    def update(self, changes: dict) -> AcceptanceConfig:
        """A new configuration with these options replaced."""
        return type(self).coerce({name: getattr(self, name) for name in type(self).model_fields} | changes)

    def __str__(self):
        return self.to_yaml()
