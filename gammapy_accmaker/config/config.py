"""The configuration: pydantic options at the edge of the package; the numerics never see it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Literal

import astropy.units as u
import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from gammapy_accmaker.config.errors import ConfigFile, explain, parse_yaml
from gammapy_accmaker.config.kinds import GridOptions, ParametricOptions, RadialOptions, SplineOptions
from gammapy_accmaker.config.options import (
    AdaptiveEnergy,
    AdaptiveRingRenormalization,
    BinnedAzimuth,
    BinnedZenith,
    ContinuousZenith,
    EastWestAzimuth,
    EnergyOptions,
    ExclusionOptions,
    FoundSources,
    FovRenormalization,
    InterpolatedZenith,
    IterativeOptions,
    KnownSources,
    MatchingOptions,
    NoAzimuth,
    NoRenormalization,
    NoSources,
    NoZenith,
    RingRenormalization,
    RunEffectsOptions,
    ZenithBins,
)
from gammapy_accmaker.config.types import EnergyEdges, Location, OneAngle, Options, TimeStep
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.utils.describe import as_call
from gammapy_accmaker.utils.files import as_path, write_atomically

log = logging.getLogger(__name__)

# keys of earlier versions, in files that are still about, and why they are gone
_RETIRED = {"outside_files": "files are read wherever gammapy finds them"}


def without_retired_keys(options):
    """Options without the keys that have no meaning any more, each named in a warning; what is no mapping as it is."""
    if not isinstance(options, dict):
        return options
    for key in _RETIRED.keys() & options.keys():
        log.warning(f"config: the key {key!r} is ignored, since {_RETIRED[key]}; take it out of the configuration")
    return {key: value for key, value in options.items() if key not in _RETIRED}


_FitEnergy = Annotated[
    # this order: pydantic 2.8 would write adaptive bins as edges
    Annotated[AdaptiveEnergy, Tag("adaptive")] | Annotated[EnergyEdges, Tag("edges")],
    Discriminator(lambda value: "adaptive" if isinstance(value, (dict, AdaptiveEnergy)) else "edges"),
]


class AcceptanceConfig(ConfigFile, Options):
    """Options of an acceptance fit and of its application; each has a default.

    Quantities are given as strings such as ``"2.5 deg"``.

    Attributes
    ----------
    model : mapping
        Kind of model, by its ``type`` (spline, radial, grid or parametric), and the options of that kind.
    energy : mapping
        Range and number of bins per decade of the reconstructed energy.
    offset_max : angle
        Largest offset of the model and of the events of the fit.
    fit_energy : energies or mapping
        Edges of the energy bins of the fit, in place of those of ``energy``. Bins that are wider than
        ``nbins_per_decade`` asks for share a profile over the field: the spectrum inside of them is that of finer bins,
        and keeps their integrals. Or, for a radial or grid model, ``{type: adaptive, min_counts: 500, max_width:
        0.5}``: bins of ``energy`` merged until each holds so many events or is so many decades wide.
    fov_alignment : str
        Axes of the camera frame: along altitude and azimuth, or declination and right ascension.
    time_step : time
        Steps in which the zenith angle and the place of the exclusion are followed inside a run; null: one step a run.
    zenith : mapping
        How the rate follows the zenith angle. A spline model is a smooth function of it (continuous); any other is
        interpolated between bins of cos zenith, or has one where the runs are alike.
    azimuth : mapping
        Whether runs are pooled in sectors of azimuth: none, east_west or binned.
    run_effects : mapping
        What is fitted to each run: none, its norm, norm and tilt, or norm, energy shift and smooth residuals (shift).
    renormalization : mapping
        How the maker scales the background that it has filled into a dataset: not at all (none), or as one of gammapy's
        makers does (fov, ring, adaptive_ring).
    exclusion : mapping
        Parts of the sky that the fit leaves out.
    sources : mapping
        Gamma-ray sources: none, models of a file that stand in the likelihood of the fit beside the background, or
        found, for those that are looked for in the data and left out.
    matching : mapping
        For a fit with OFF runs: a model for each ON run, from those OFF runs that are most like it. Its options are
        limits, weights, hours, n_runs and same.
    observatory_location : str or mapping
        Name of the observatory, or its lon, lat and height; it is used in place of what the DL3 files say.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceConfig
    >>> config = AcceptanceConfig(model={"type": "grid"}, offset_max="2 deg")
    >>> config.offset_max
    <Angle 2. deg>
    """

    model: Annotated[SplineOptions | RadialOptions | GridOptions | ParametricOptions, Field(discriminator="type")] = (
        SplineOptions()
    )
    energy: EnergyOptions = EnergyOptions()
    offset_max: OneAngle = "2.5 deg"
    fit_energy: _FitEnergy | None = None
    fov_alignment: Literal["altaz", "radec"] = "altaz"
    zenith: Annotated[NoZenith | ContinuousZenith | BinnedZenith | InterpolatedZenith, Field(discriminator="type")] = (
        ContinuousZenith()
    )
    azimuth: Annotated[NoAzimuth | EastWestAzimuth | BinnedAzimuth, Field(discriminator="type")] = NoAzimuth()
    time_step: TimeStep | None = u.Quantity("1 min")
    run_effects: RunEffectsOptions = RunEffectsOptions()
    renormalization: Annotated[
        NoRenormalization | FovRenormalization | RingRenormalization | AdaptiveRingRenormalization,
        Field(discriminator="type"),
    ] = NoRenormalization()
    exclusion: ExclusionOptions = ExclusionOptions()
    sources: Annotated[NoSources | KnownSources | FoundSources, Field(discriminator="type")] = NoSources()
    matching: MatchingOptions | None = None
    observatory_location: Location | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, options):
        return without_retired_keys(options)

    @model_validator(mode="after")
    def _consistent(self):
        if not 0 < self.offset_max.deg < 90:
            raise ValueError(f"offset_max: got {self.offset_max}, but an angle between 0 and 90 deg is needed")
        if isinstance(self.fit_energy, u.Quantity) and self.fit_energy[0] <= 0:
            raise ValueError(f"fit_energy: got {self.fit_energy}, but energies > 0 are needed")
        if self.exclusion.iterative is not None and isinstance(self.sources, FoundSources):
            raise ValueError("sources: got 'found' and exclusion.iterative, which are the same search; leave one out")
        if self.matching is not None and self.search is not None:
            key = "sources 'found'" if self.exclusion.iterative is None else "exclusion.iterative"
            raise ValueError(f"{key}: it cannot be used with matching; fit all runs first and give what is found")
        if self.time_step_seconds is not None and self.time_step_seconds < 1:
            raise ValueError(f"time_step: got {self.time_step}, but at least 1 s is needed")
        for key, known in self.model.takes.items():
            self._check_taken(key, known)
        self._check_norm_energy()
        self.model.check_fit_energy(self.fit_energy)
        return self

    def _check_taken(self, key, known):
        """An error where the model cannot have options of a type that was asked for.

        What nobody asked for becomes what is nearest to it, interpolated between bins of zenith; and, for energies of
        the norm, a norm.
        """
        options = getattr(self, key)
        asked = key in self.model_fields_set and "type" in options.model_fields_set
        if asked and options.type not in known:
            raise ValueError(
                f"{key}: {options.type!r} needs the model type {self.model.else_use}, but got {self.model.type!r}; "
                f"use one of {known}"
            )
        if options.type not in known:
            object.__setattr__(self, key, InterpolatedZenith())
        if key == "run_effects" and not asked and options.norm_energy is not None:
            object.__setattr__(self, key, options.model_copy(update={"type": "norm"}))

    def _check_norm_energy(self):
        given, kind = self.run_effects.norm_energy, self.run_effects.type
        if given is None:
            return
        if kind not in ("norm", "tilt"):
            raise ValueError(
                f"run_effects.norm_energy: got {given}, but {kind!r} has no norm of its own; "
                "use type norm or tilt, or leave it null"
            )
        edges = (
            self.fit_energy
            if isinstance(self.fit_energy, u.Quantity)
            else u.Quantity([self.energy.min, self.energy.max])
        )
        if given[0] >= edges[-1] or given[1] <= edges[0]:
            raise ValueError(
                f"run_effects.norm_energy: got {given}, but energies of the model, {edges[0]} to {edges[-1]}, are "
                "needed; choose some of them, or leave it null"
            )

    @property
    def time_step_seconds(self) -> float | None:
        """The time step in s; None for one step a run."""
        return None if self.time_step is None else self.time_step.to_value("s")

    @property
    def zenith_bins(self) -> ZenithBins | None:
        """How runs are pooled in zenith; None where they are not."""
        return self.zenith if isinstance(self.zenith, ZenithBins) else None

    @property
    def search(self) -> IterativeOptions | None:
        """How sources are looked for in the data, where they are."""
        return self.sources if isinstance(self.sources, FoundSources) else self.exclusion.iterative

    def without_search(self) -> AcceptanceConfig:
        """A copy that looks for no sources, for when what was found is given as an exclusion.

        Returns
        -------
        config : `AcceptanceConfig`
            Without ``exclusion.iterative``, and with ``sources: {type: none}`` in place of found ones.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> AcceptanceConfig(exclusion={"iterative": {}}).without_search().exclusion.iterative is None
        True
        """
        exclusion = self.exclusion.model_copy(update={"iterative": None})
        sources = NoSources() if isinstance(self.sources, FoundSources) else self.sources
        return self.update({"exclusion": exclusion, "sources": sources})

    @property
    def needs_zenith(self) -> bool:
        """Whether the model follows the zenith angle or the azimuth of a run, which must then be known."""
        return self.zenith.type != "none" or self.azimuth.type != "none"

    @classmethod
    def coerce(cls, config) -> AcceptanceConfig:
        """A configuration from None, a mapping, the path of a YAML file or a configuration.

        Parameters
        ----------
        config : None, dict, str, `~pathlib.Path` or `AcceptanceConfig`
            None: all defaults. A configuration is returned as it is.

        Returns
        -------
        config : `AcceptanceConfig`

        Raises
        ------
        InputError
            For anything else, and for a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> AcceptanceConfig.coerce({"model": {"type": "radial"}}).model.type
        'radial'
        """
        if isinstance(config, cls):
            return config
        if isinstance(config, str | Path):
            return cls.read(config)
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise InputError(
                f"config: got {type(config).__name__}, but an AcceptanceConfig, a dict, "
                "the path of a YAML file or None is needed"
            )
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            raise InputError(f"config: {explain(error, cls)}") from error

    @classmethod
    def from_yaml(cls, text: str | AcceptanceConfig) -> AcceptanceConfig:
        """Configuration from YAML (or JSON) text; a configuration as it is.

        Parameters
        ----------
        text : str or `AcceptanceConfig`
            The text itself; for the path of a file see `read`.

        Returns
        -------
        config : `AcceptanceConfig`

        Raises
        ------
        InputError
            For text that is not YAML, and for a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> AcceptanceConfig.from_yaml("offset_max: 2 deg").offset_max
        <Angle 2. deg>
        """
        if isinstance(text, cls):  # what `AcceptanceModel.config` is, which was text in earlier versions
            return text
        return cls.coerce(parse_yaml(text, "keys such as `model:`"))

    def to_yaml(self) -> str:
        """YAML text that `from_yaml` reads back.

        Returns
        -------
        text : str
            All options, those that are defaults included.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> text = AcceptanceConfig(offset_max="2 deg").to_yaml()
        >>> AcceptanceConfig.from_yaml(text).offset_max
        <Angle 2. deg>
        """
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def write(self, path, overwrite: bool = False) -> None:
        """Write a YAML file.

        Parameters
        ----------
        path : str or `~pathlib.Path`
            Of the file.
        overwrite : bool
            Replace an existing file.

        Raises
        ------
        InputError
            For an existing file without ``overwrite``.

        Examples
        --------
        >>> AcceptanceConfig().write("acceptance.yaml")  # doctest: +SKIP
        """
        write_atomically(as_path(path), lambda temporary: temporary.write_text(self.to_yaml()), overwrite)

    def update(self, changes: dict) -> AcceptanceConfig:
        """A new configuration with these options replaced.

        Parameters
        ----------
        changes : dict
            Options by their first key; each replaces the whole section of that name.

        Returns
        -------
        config : `AcceptanceConfig`
            Checked anew; this one is not changed.

        Raises
        ------
        InputError
            For what is no dict, and for a wrong key or value, which it names.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> AcceptanceConfig().update({"offset_max": "2 deg"}).offset_max
        <Angle 2. deg>
        """
        if not isinstance(changes, dict):
            raise InputError(f"changes: got {type(changes).__name__}, but a dict of options is needed")
        return type(self).coerce({name: getattr(self, name) for name in type(self).model_fields} | changes)

    def without_files(self) -> AcceptanceConfig:
        """A copy that names no file of an exclusion or of sources: a fitted model holds what was in them.

        Returns
        -------
        config : `AcceptanceConfig`
            Without ``regions``, ``mask`` and ``catalog``.

        Examples
        --------
        >>> from gammapy_accmaker import AcceptanceConfig
        >>> AcceptanceConfig().without_files().exclusion.regions is None
        True
        """
        nothing = dict.fromkeys(("regions", "mask", "catalog"))
        exclusion = self.exclusion.model_copy(update=nothing)
        sources = self.sources.model_copy(update={"models": None}) if self.sources.files() else self.sources
        return self.model_copy(update={"exclusion": exclusion, "sources": sources})

    def __repr__(self):
        """The call that makes it: what is no default."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        for name in changed:
            kind = getattr(getattr(self, name), "type", None)
            if kind is not None:  # the default of its group, which is told by it
                changed[name] = {"type": kind} | changed[name]
        return as_call(type(self).__name__, changed)

    def __str__(self):
        return self.to_yaml()
