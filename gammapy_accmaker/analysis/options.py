"""What the background of gammapy's analysis has more for an acceptance."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from gammapy.analysis.config import BackgroundMethodEnum, GammapyBaseConfig, ObservationsConfig, RequiredHDUEnum
from gammapy.utils.types import PathType
from pydantic import (
    BaseModel,
    BeforeValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from gammapy_accmaker.config.config import AcceptanceConfig, without_retired_keys
from gammapy_accmaker.config.errors import explain
from gammapy_accmaker.errors import InputError

__all__ = [
    "BACKGROUND",
    "AcceptanceBackground",
    "OffObservationsConfig",
    "as_options",
    "check_file",
    "check_runs",
    "read_parameters",
]

BACKGROUND = "datasets.background"

# gammapy's set of methods is closed
AcceptanceMethodEnum = Enum(
    "AcceptanceMethodEnum", {m.name: m.value for m in BackgroundMethodEnum} | {"acceptance": "acceptance"}, type=str
)


def as_options(cls):
    """Validator by which options of gammapy's own class become those of the class that extends it."""
    return BeforeValidator(lambda v: v.model_dump() if isinstance(v, BaseModel) and not isinstance(v, cls) else v)


class OffObservationsConfig(ObservationsConfig):
    """gammapy's selection of observations, for the OFF runs that the acceptance is fitted to.

    ``datastore``: that of the observations where it is None. ``required_irf``: a fit needs none.
    """

    datastore: PathType | None = None
    required_irf: list[RequiredHDUEnum] = []

    @property
    def selects(self) -> bool:
        """Whether anything but the data store is named."""
        return bool(self.obs_ids) or any(
            choice is not None for choice in (self.obs_file, self.obs_cone.lon, self.obs_time.start)
        )


class AcceptanceBackground(GammapyBaseConfig):
    """What `~gammapy.analysis.config.BackgroundConfig` has more, for ``method: acceptance``.

    Attributes
    ----------
    method : str
        One of gammapy's, or "acceptance".
    parameters : dict
        Options of `AcceptanceConfig`; or those of gammapy's maker.
    exclusion : str
        Map file that is False where excluded, or a region file.
    off_observations : `OffObservationsConfig`
        OFF runs that the model is fitted to. Default: it is fitted to the observations.
    model : str
        Model file, applied without a fit. ``parameters`` may change how it is applied, not what was fitted.
    """

    method: AcceptanceMethodEnum | None = None
    off_observations: Annotated[OffObservationsConfig, as_options(OffObservationsConfig)] | None = None
    model: PathType | None = None

    @field_validator("parameters", mode="before", check_fields=False)
    @classmethod
    def _nested_parameters(cls, value: Any, info: ValidationInfo):
        """Options of an acceptance as nested dictionaries, checked where they are some."""
        value = _nested(value)
        if info.data.get("method") == "acceptance" and isinstance(value, dict):
            value = without_retired_keys(value)
            read_parameters(value)
        return value

    @field_serializer("parameters", when_used="json", check_fields=False)
    def _parameters_in_a_file(self, value: dict):
        return _given(read_parameters(value).model_dump(mode="json"), value) if self.method == "acceptance" else value

    @model_validator(mode="after")
    def _consistent(self):
        self.check()
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler):
        """What is not used is not written: gammapy reads the file too."""
        data = handler(self)
        return {k: v for k, v in data.items() if k not in ("off_observations", "model") or v is not None}

    def check(self) -> None:
        """Raise an `InputError` for what contradicts itself, and for files that are not there."""
        if self.method != "acceptance":
            for key in ("off_observations", "model"):
                if getattr(self, key) is not None:
                    raise InputError(
                        f"{BACKGROUND}.{key}: it needs `method: acceptance`, but got {self.method!r}; set this method, or leave {key} out"
                    )
            return
        options = read_parameters(self.parameters)
        if options.matching is not None and self.off_observations is None and self.model is None:
            raise InputError(
                f"{BACKGROUND}.parameters.matching: it needs OFF runs; name them in off_observations, or leave matching null"
            )
        if self.model is not None and self.off_observations is not None:
            raise InputError(
                f"{BACKGROUND}.off_observations: with `model`, nothing is fitted; leave one of the two out"
            )
        files = {"model": self.model, "exclusion": self.exclusion}
        if self.off_observations is not None:
            check_runs(self.off_observations, f"{BACKGROUND}.off_observations")
            files["off_observations.obs_file"] = self.off_observations.obs_file
        for key, path in files.items():
            check_file(f"{BACKGROUND}.{key}", path)


def read_parameters(parameters: dict) -> AcceptanceConfig:
    """Options of an acceptance; an `InputError` gives the full key of what is wrong."""
    try:
        return AcceptanceConfig.model_validate(parameters)
    except ValidationError as error:
        raise InputError(explain(error, AcceptanceConfig, f"{BACKGROUND}.parameters")) from error


def _nested(options):
    if isinstance(options, BaseModel):
        return options.model_dump()
    return {key: _nested(value) for key, value in options.items()} if isinstance(options, dict) else options


def _given(dumped, given):
    """What was given of options, in the form that a file has."""
    if isinstance(dumped, dict) and isinstance(given, dict) and set(given) <= set(dumped):
        return {key: _given(dumped[key], value) for key, value in given.items()}
    return dumped


def check_file(key: str, path: Path | None) -> None:
    """Raise an `InputError` for a file or folder that is named and not there."""
    if path is not None and not path.exists():
        raise InputError(f"{key}: there is no {path}; give the path of an existing one")


def check_runs(observations: ObservationsConfig, key: str) -> None:
    """Raise an `InputError` for a selection of runs that contradicts itself."""
    if observations.obs_ids and observations.obs_file is not None:
        raise InputError(f"{key}: got both obs_ids and obs_file; leave one of the two out")
