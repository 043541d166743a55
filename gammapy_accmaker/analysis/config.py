"""gammapy's configuration of an analysis, with the acceptance among the background methods.

`AcceptanceBackground` holds what ``datasets.background`` has more for an acceptance; `ExtendedConfig` reads, updates
and checks a configuration with it, for the analysis here and for the workflow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from gammapy.analysis import AnalysisConfig
from gammapy.analysis.config import (
    BackgroundConfig,
    BackgroundMethodEnum,
    DatasetsConfig,
    GammapyBaseConfig,
    ObservationsConfig,
    RequiredHDUEnum,
)
from gammapy.utils.types import PathType
from pydantic import (
    BaseModel,
    BeforeValidator,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from gammapy_accmaker.config.config import AcceptanceConfig, without_retired_keys
from gammapy_accmaker.config.errors import ConfigFile, explain, find_key, parse_yaml
from gammapy_accmaker.errors import InputError, InputTypeError
from gammapy_accmaker.utils.describe import as_call

BACKGROUND = "datasets.background"

# gammapy's set of methods is closed, and of it types know nothing
AcceptanceMethodEnum = Enum(  # type: ignore[misc]
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
    _validated: tuple[dict, AcceptanceConfig] | None = PrivateAttr(None)
    off_observations: Annotated[OffObservationsConfig, as_options(OffObservationsConfig)] | None = None
    model: PathType | None = None

    @field_validator("parameters", mode="before", check_fields=False)
    @classmethod
    def _nested_parameters(cls, value: Any, info: ValidationInfo):
        """Options of an acceptance as nested dictionaries."""
        value = _nested(value)
        return without_retired_keys(value) if info.data.get("method") == "acceptance" else value

    @field_serializer("parameters", when_used="json", check_fields=False)
    def _parameters_in_a_file(self, value: dict):
        return _given(self.options.model_dump(mode="json"), value) if self.method == "acceptance" else value

    @model_validator(mode="after")
    def _consistent(self):
        self.check()
        return self

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler):
        """What is not used is not written: gammapy reads the file too."""
        data = handler(self)
        return {k: v for k, v in data.items() if k not in ("off_observations", "model") or v is not None}

    @property
    def options(self) -> AcceptanceConfig:
        """The parameters as options of an acceptance: validated once, and again where they were changed in place."""
        if self._validated is None or not _is_same(self._validated[0], self.parameters):
            self._validated = _nested(self.parameters), read_parameters(self.parameters)
        return self._validated[1]

    def check(self) -> None:
        """Raise an `InputError` for what contradicts itself, and for files that are not there."""
        if self.method != "acceptance":
            for key in ("off_observations", "model"):
                if getattr(self, key) is not None:
                    raise InputError(
                        f"{BACKGROUND}.{key}: it needs `method: acceptance`, but got {self.method!r}; "
                        f"set this method, or leave {key} out"
                    )
            return
        options = self.options
        if options.matching is not None and self.off_observations is None and self.model is None:
            raise InputError(
                f"{BACKGROUND}.parameters.matching: it needs OFF runs; "
                "name them in off_observations, or leave matching null"
            )
        if self.model is not None and self.off_observations is not None:
            raise InputError(
                f"{BACKGROUND}.off_observations: with `model`, nothing is fitted; leave one of the two out"
            )
        files = {"model": self.model, "exclusion": self.exclusion}
        if self.off_observations is not None:
            _check_runs(self.off_observations, f"{BACKGROUND}.off_observations")
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
    if isinstance(options, list):
        return [_nested(value) for value in options]
    return {key: _nested(value) for key, value in options.items()} if isinstance(options, dict) else options


def _is_same(old, new):
    """Whether nested options are as they were; what they hold is compared as objects, or by what it says of itself."""
    try:
        return bool(old == new)
    except ValueError:  # an array in place of another
        return False


def _given(dumped, given):
    """What was given of options, in the form that a file has."""
    if isinstance(dumped, dict) and isinstance(given, dict) and set(given) <= set(dumped):
        return {key: _given(dumped[key], value) for key, value in given.items()}
    return dumped


def check_file(key: str, path: Path | None) -> None:
    """Raise an `InputError` for a file or folder that is named and not there."""
    if path is None or path.exists():
        return
    unset = re.findall(r"\$\{?(\w+)", str(path))  # those that are set were replaced
    if unset:
        raise InputError(
            f"{key}: {path} cannot be found, since the environment variable {unset[0]} is not set; set it to the "
            f"folder of the data (export {unset[0]}=...), or give the path of an existing file or folder"
        )
    raise InputError(f"{key}: there is no {path}; give the path of an existing one")


def _check_runs(observations: ObservationsConfig, key: str) -> None:
    """Raise an `InputError` for a selection of runs that contradicts itself."""
    if observations.obs_ids and observations.obs_file is not None:
        raise InputError(f"{key}: got both obs_ids and obs_file; leave one of the two out")


class AcceptanceBackgroundConfig(AcceptanceBackground, BackgroundConfig):
    """`~gammapy.analysis.config.BackgroundConfig` with `AcceptanceBackground`."""


class AcceptanceDatasetsConfig(DatasetsConfig):
    """`~gammapy.analysis.config.DatasetsConfig` with the extended background."""

    background: Annotated[AcceptanceBackgroundConfig, as_options(AcceptanceBackgroundConfig)] = (
        AcceptanceBackgroundConfig()
    )


class ExtendedConfig(ConfigFile, GammapyBaseConfig):
    """Reading, updating and checks of an extended configuration; gammapy's name its own class."""

    def __init__(self, **data):
        try:
            super().__init__(**data)
        except (TypeError, AttributeError, KeyError) as error:  # pydantic would not name the key
            raise InputError(find_key(type(self), data)) from error

    @classmethod
    def from_options(cls, options: Mapping | None):
        """Configuration from nested options.

        Parameters
        ----------
        options : dict
            By section, as in a YAML file; ``metadata`` and ``checksum``, which gammapy writes too, are passed over.

        Returns
        -------
        config : configuration of this class

        Raises
        ------
        InputError
            For a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> AcceptanceAnalysisConfig.from_options({"datasets": {"type": "1d"}}).datasets.type
        '1d'
        """
        if not isinstance(options, Mapping):
            raise InputError(f"config: got {options!r}, but sections such as `datasets:` are needed")
        try:
            # gammapy writes these two into its files besides the options
            return cls(**{key: value for key, value in options.items() if key not in ("metadata", "checksum")})
        except ValidationError as error:
            raise InputError(f"config: {explain(error, cls)}") from error

    @classmethod
    def coerce(cls, config):
        """Configuration from what may stand in its place.

        Parameters
        ----------
        config : dict, str, `~pathlib.Path` or configuration
            Nested options, the path of a YAML file, or gammapy's configuration that this class extends.

        Returns
        -------
        config : configuration of this class

        Raises
        ------
        InputError
            For a wrong key or value, which it names.
        InputTypeError
            For anything else, and for a file that is not there.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> config = AcceptanceAnalysisConfig.coerce("analysis.yaml")  # doctest: +SKIP
        """
        if isinstance(config, cls):
            return config
        if isinstance(config, dict):
            return cls.from_options(config)
        if isinstance(config, BaseModel) and issubclass(cls, type(config)):
            return cls.from_options(config.model_dump())
        if isinstance(config, str | Path):
            return cls.read(config)
        raise InputTypeError(
            f"config: got {type(config).__name__}, but a dict, the path of a YAML file or {cls.__name__} is needed"
        )

    @classmethod
    def from_yaml(cls, config_str: str):
        """Configuration from YAML (or JSON) text.

        Parameters
        ----------
        config_str : str
            The text itself; for the path of a file see `read`.

        Returns
        -------
        config : configuration of this class

        Raises
        ------
        InputError
            For text that is not YAML with sections, and for a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> AcceptanceAnalysisConfig.from_yaml("datasets: {type: 1d}").datasets.type
        '1d'
        """
        return cls.from_options(parse_yaml(config_str, "sections such as `datasets:`"))

    def __repr__(self):
        """The call that makes it: what is no default."""
        return as_call(type(self).__name__, self.model_dump(mode="json", exclude_defaults=True))

    def update(self, config=None):
        """A new configuration with some options replaced.

        Parameters
        ----------
        config : str, dict or configuration
            The options: YAML text, nested options, or a configuration, of which all that is no default counts.

        Returns
        -------
        config : configuration of this class
            Checked anew; this one is not changed.

        Raises
        ------
        InputError
            For a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> AcceptanceAnalysisConfig().update({"datasets": {"type": "1d"}}).datasets.type
        '1d'
        """
        if isinstance(config, str):
            changes = parse_yaml(config, "sections such as `datasets:`")
        elif isinstance(config, BaseModel) and issubclass(type(self), type(config)):
            changes = config.model_dump(exclude_defaults=True)
        elif isinstance(config, Mapping):
            changes = config
        else:
            raise InputTypeError(
                f"config: got {type(config).__name__}, but YAML text, a dict or {type(self).__name__} is needed"
            )
        options = self.model_dump(exclude_defaults=True)
        background, new = _background_of(options), _background_of(changes)
        methods = {background.get("method"), new.get("method", background.get("method"))}
        if "acceptance" in methods and len(methods) == 2:
            # parameters of another method's maker are none of an acceptance, and the other way round
            for key in ("parameters", "off_observations", "model"):
                background.pop(key, None)
        return self.from_options(_merged(options, changes))

    @model_validator(mode="after")
    def _consistent(self):
        self.check()
        return self

    def check(self) -> None:
        """Raise an `InputError` for choices that contradict each other, and for files that are not there.

        What is assigned in place, such as ``config.datasets.background.method``, is not held against other sections
        until then; an analysis does it before it reads data.

        Raises
        ------
        InputError
            For the first of them, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> AcceptanceAnalysisConfig().check()
        """
        background = self.datasets.background
        background.check()
        if background.method != "acceptance":
            return
        _check_runs(self.observations, "observations")
        for key, path in (("datastore", self._named_datastore()), ("obs_file", self.observations.obs_file)):
            check_file(f"observations.{key}", path)
        off = background.off_observations
        if off is not None:
            check_file(f"{BACKGROUND}.off_observations.datastore", off.datastore)
            if not off.selects and off.datastore in (None, self.observations.datastore):
                raise InputError(
                    f"{BACKGROUND}.off_observations: it selects no runs of its own; "
                    "give obs_ids, obs_file, obs_cone or obs_time, or the datastore of the OFF runs"
                )
        if "bkg-peak" in self.datasets.safe_mask.methods:
            raise InputError(
                "datasets.safe_mask.methods: 'bkg-peak' needs a background before the acceptance is there; "
                "use another, such as 'aeff-max'"
            )
        self.check_renormalization(background.options.renormalization.type)

    def check_renormalization(self, kind: str) -> None:
        """Raise an `InputError` where the datasets cannot have this renormalisation.

        Parameters
        ----------
        kind : str
            Type of the option ``renormalization``.

        Raises
        ------
        InputError
            For spectra, and for rings and more than one energy bin.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceAnalysisConfig
        >>> AcceptanceAnalysisConfig().check_renormalization("none")
        """
        key, nbins = f"{BACKGROUND}.parameters.renormalization.type", self.datasets.geom.axes.energy.nbins
        if kind != "none" and self.datasets.type == "1d":
            raise InputError(
                f"{key}: {kind!r} needs maps, but got `datasets.type: 1d`; use `type: none`, or `datasets.type: 3d`"
            )
        if kind in ("ring", "adaptive_ring") and nbins != 1:
            raise InputError(
                f"{key}: {kind!r} needs one energy bin, but got `datasets.geom.axes.energy.nbins: {nbins}`; "
                "use `nbins: 1`, or `type: fov`"
            )

    def _named_datastore(self):
        return self.observations.datastore if "datastore" in self.observations.model_fields_set else None

    def check_complete(self) -> None:
        """`check`, and raise an `InputError` for what an acceptance cannot do without.

        Raises
        ------
        InputError
            For a geometry without a position or an energy axis.

        Examples
        --------
        >>> config.check_complete()  # doctest: +SKIP
        """
        self.check()
        datasets = self.datasets
        where = {
            "1d": ("datasets.on_region", datasets.on_region, ("frame", "lon", "lat", "radius")),
            "3d": ("datasets.geom.wcs.skydir", datasets.geom.wcs.skydir, ("frame", "lon", "lat")),
        }[datasets.type]
        for path, options, keys in (
            where,
            ("datasets.geom.axes.energy", datasets.geom.axes.energy, ("min", "max", "nbins")),
        ):
            missing = [key for key in keys if getattr(options, key) is None]
            if missing:
                raise InputError(f"{path}: {', '.join(missing)} missing; `datasets.type: {datasets.type}` needs it")


class AcceptanceAnalysisConfig(ExtendedConfig, AnalysisConfig):
    """`~gammapy.analysis.AnalysisConfig` with ``acceptance`` among the methods of ``datasets.background``.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceAnalysisConfig
    >>> config = AcceptanceAnalysisConfig.from_yaml('''
    ... datasets:
    ...     type: 3d
    ...     background:
    ...         method: acceptance
    ...         parameters: {model: {type: radial}, offset_max: 2 deg}
    ... ''')
    >>> config.datasets.background.method
    'acceptance'
    """

    datasets: Annotated[AcceptanceDatasetsConfig, as_options(AcceptanceDatasetsConfig)] = AcceptanceDatasetsConfig()


def _background_of(options):
    for key in ("datasets", "background"):
        options = options.get(key) if isinstance(options, Mapping) else None
    return options if isinstance(options, Mapping) else {}


def _merged(old, new):
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
