"""The configuration: pydantic options at the edge of the package; the numerics never see it."""

from __future__ import annotations

from typing import Annotated, Literal

import astropy.units as u
import yaml
from gammapy.utils.scripts import make_path
from pydantic import Field, ValidationError, model_validator

from gammapy_accmaker.config_types import EnergyEdges, Location, OneAngle, TimeStep
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.files import write_atomically
from gammapy_accmaker.options import (
    AdaptiveRingRenormalization,
    AzimuthOptions,
    EnergyOptions,
    ExclusionOptions,
    FovRenormalization,
    GridOptions,
    NoRenormalization,
    Options,
    RadialOptions,
    RingRenormalization,
    RunEffectsOptions,
    SplineOptions,
    ZenithOptions,
)

__all__ = ["AcceptanceConfig"]


class AcceptanceConfig(Options):
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
            return cls.model_validate(config)
        except ValidationError as error:
            lines = [f"{'.'.join(str(k) for k in e['loc']) or 'config'}: {e['msg']}" for e in error.errors()]
            raise InputError("config: " + "; ".join(lines)) from error

    @classmethod
    def from_yaml(cls, text: str) -> AcceptanceConfig:
        """Configuration from YAML (or JSON) text."""
        try:
            data = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that does not exist is a ValueError
            raise InputError(f"config: the text is not YAML ({error})") from error
        return cls.coerce(data)

    @classmethod
    def read(cls, path) -> AcceptanceConfig:
        """Configuration from a YAML file."""
        path = make_path(path)
        if not path.is_file():
            raise InputError(f"config: there is no file {path}; write one with `AcceptanceConfig().write(path)`")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"config: {path} cannot be read as text ({error})") from error
        return cls.from_yaml(text)

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
