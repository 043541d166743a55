"""The kinds of model that a configuration can ask for, told apart by ``type``: the options of each, the bins that it is
fitted to, and its fit.

What differs between them is told here, or by the fitted model itself (`RateModel`), and asked for nowhere else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import astropy.units as u
import numpy as np
from pydantic import Field, PlainSerializer, model_validator

from gammapy_accmaker.camera.bins import CountsBins, FovBins, energy_edges_per_decade, split_bins
from gammapy_accmaker.config.options import AdaptiveEnergy, EnergyOptions
from gammapy_accmaker.config.types import AngleEdges, Options
from gammapy_accmaker.data.reduced_run import ReducedRun, in_own_order
from gammapy_accmaker.models.alignment import ZenithScaling
from gammapy_accmaker.models.base import EffectSettings, RateModel
from gammapy_accmaker.models.binned import BinnedModel, SummedRuns, fit_binned, sum_runs
from gammapy_accmaker.models.parametric.fit import fit_parametric
from gammapy_accmaker.models.parametric.function import PYTHON, check_shared, describe_function, rate_function
from gammapy_accmaker.models.parametric.model import ParametricModel
from gammapy_accmaker.models.parametric.shapes import READY_SHAPES
from gammapy_accmaker.models.source_terms import AmplitudeFit
from gammapy_accmaker.models.spline.cells import in_pixels
from gammapy_accmaker.models.spline.fit import fit_spline
from gammapy_accmaker.models.spline.rate import SplineRate
from gammapy_accmaker.utils.parallel import SERIAL, Execution
from gammapy_accmaker.utils.parcels import is_known_elsewhere

_SPLINE_BINS_PER_DECADE = 50
_SPLINE_PIXEL = 0.1  # deg


@dataclass(frozen=True, eq=False)
class FitSettings:
    """What the fit of any kind of model depends on, besides the runs and the options of the kind.

    Attributes
    ----------
    effects : `EffectSettings`
    follows_zenith : bool
        Whether the rate is a smooth function of the zenith angle.
    profile_edges : `~numpy.ndarray`, optional
        Energy edges in TeV between which bins share a profile over the field; by default each bin has its own.
    in_wide_bins : bool
        Whether the bins between ``profile_edges`` are those of the model.
    scaling : `ZenithScaling`, optional
        With which runs of different zenith angles are put together, by a kind that ``aligns``.
    n_band : int
        Most bands of energy in which a source has an amplitude of its own, above the thresholds of the runs and below.
    """

    effects: EffectSettings = EffectSettings()
    follows_zenith: bool = False
    profile_edges: np.ndarray | None = None
    in_wide_bins: bool = False
    scaling: ZenithScaling | None = None
    n_band: int = 1


class ModelOptions(Options):
    """What each kind of model tells of itself.

    Attributes
    ----------
    takes : dict of tuple of str
        Types of other options, by their key, that the model can be combined with.
    else_use : str
        The model that takes the others.
    adapts_in_own_bins : bool
        Whether a model is adapted to a run in the bins of its fit alone, so that these cannot be changed later.
    fits_sources : bool
        Whether its fit takes sources beside the background; others are fitted to counts alone.
    remedy : str
        What to do where a fit does not describe its counts.
    """

    takes: ClassVar[dict[str, tuple[str, ...]]] = {}
    else_use: ClassVar[str] = ""
    adapts_in_own_bins: ClassVar[bool] = False
    fits_sources: ClassVar[bool] = False
    remedy: ClassVar[str] = "use finer offset_bins and fit_energy, or the model 'spline'"

    @property
    def keywords(self) -> tuple[str, ...]:
        """Keywords of the event header that the model follows, each once."""
        return ()

    @property
    def aligns(self) -> bool:
        """Whether a fit puts runs of different thresholds together at scaled energies."""
        return False

    def following(self, keywords: Sequence[str]) -> ModelOptions:
        """The options of a model that follows these keywords of the event header too."""
        return self

    def check_fit_energy(self, fit_energy: AdaptiveEnergy | u.Quantity | None) -> None:
        """Raise a `ValueError` for energy bins that the model cannot be fitted in."""

    def largest_offset(self, offset_max: float) -> float:
        """Largest offset in deg of the bins, in a configuration with this ``offset_max``."""
        return offset_max

    def make_bins(
        self, energy: EnergyOptions, fit_energy: AdaptiveEnergy | u.Quantity | None, offset_max: float, alignment: str
    ) -> CountsBins:
        """Bins of the counts that a model with these options is fitted to, up to an offset in deg."""
        if isinstance(fit_energy, u.Quantity):
            # in a wide bin the spectrum is one of fine bins; the profile over the field is that of the wide one
            edges = split_bins(fit_energy.to_value("TeV"), 1 / energy.nbins_per_decade)
        else:
            edges = energy_edges_per_decade(energy.min, energy.max, energy.nbins_per_decade)
        return CountsBins(edges, self.make_fov_bins(offset_max), alignment)

    @abstractmethod
    def make_fov_bins(self, offset_max: float) -> FovBins:
        """Bins of the field of view up to an offset in deg, or those that are given."""

    def adapts_by_counts(self, effects: EffectSettings) -> bool:
        """Whether the fitted model is adapted to a run of the fit by the counts of the run, which are needed again."""
        return True

    @abstractmethod
    def fit(
        self, runs: Iterable[ReducedRun], bins: CountsBins, settings: FitSettings, execution: Execution = SERIAL
    ) -> tuple[RateModel, AmplitudeFit | None]:
        """Fit one model to all of some runs, which were reduced in ``bins``, and the amplitudes of their sources, for a
        kind that ``fits_sources``."""


class SplineOptions(ModelOptions):
    """Smooth rate over energy, offset and zenith angle with an asymmetry: the joint model, adapted to each run.

    Attributes
    ----------
    covariates : list of str
        Keywords of the event header, such as MUONEFF, that norm and energy scale of the runs may follow: any that are
        numbers and differ from run to run. A run that lacks one counts as the mean of the others.
    """

    takes: ClassVar[dict[str, tuple[str, ...]]] = {"zenith": ("none", "continuous"), "azimuth": ("none",)}
    else_use: ClassVar[str] = "'radial' or 'grid'"
    adapts_in_own_bins: ClassVar[bool] = True
    fits_sources: ClassVar[bool] = True

    type: Literal["spline"] = "spline"
    covariates: list[str] = ["MUONEFF"]

    @property
    def keywords(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.covariates))

    def check_fit_energy(self, fit_energy: AdaptiveEnergy | u.Quantity | None) -> None:
        if fit_energy is not None:
            raise ValueError(
                f"fit_energy: got {fit_energy}, but the spline model has fine bins of its own; "
                "leave it null or use another model"
            )

    def following(self, keywords: Sequence[str]) -> SplineOptions:
        return self.model_copy(update={"covariates": [*dict.fromkeys((*self.covariates, *keywords))]})

    def make_bins(
        self, energy: EnergyOptions, fit_energy: AdaptiveEnergy | u.Quantity | None, offset_max: float, alignment: str
    ) -> CountsBins:
        edges = energy_edges_per_decade(energy.min, energy.max, _SPLINE_BINS_PER_DECADE)
        return CountsBins(edges, self.make_fov_bins(offset_max), alignment, offset_max)

    def make_fov_bins(self, offset_max: float) -> FovBins:
        return FovBins.grid(offset_max, 2 * int(np.ceil(offset_max / _SPLINE_PIXEL)))

    def adapts_by_counts(self, effects: EffectSettings) -> bool:
        return effects.min_counts > 0  # else the effects are those of the fit

    def fit(
        self, runs: Iterable[ReducedRun], bins: CountsBins, settings: FitSettings, execution: Execution = SERIAL
    ) -> tuple[SplineRate, AmplitudeFit | None]:
        inside = bins.inside
        with execution.open() as kept:
            model, sources = fit_spline(
                (in_pixels(run, inside) for run in runs),
                bins.energy_edges,
                *(a[inside] for a in (bins.fov.fov_lon, bins.fov.fov_lat, bins.fov.solid_angle)),
                run_effects=settings.effects.kind,
                gradient=settings.effects.gradient,
                norm_energy=settings.effects.norm_energy,
                zenith=settings.follows_zenith,
                covariates=self.keywords,
                starmap=kept.starmap("Fit of the spline model"),
                n_band=settings.n_band,
            )
        return SplineRate(model), sources


class _PooledOptions(ModelOptions):
    """Of models that are fitted to the sum of runs."""

    takes: ClassVar[dict[str, tuple[str, ...]]] = {
        "zenith": ("none", "binned", "interpolated"),
        "run_effects": ("none", "norm", "shift"),
    }
    else_use: ClassVar[str] = "'spline'"

    type: str
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12

    @property
    def aligns(self) -> bool:
        return True

    def largest_offset(self, offset_max: float) -> float:
        return float(self.offset_bins.to_value("deg").max()) if isinstance(self.offset_bins, u.Quantity) else offset_max

    def make_fov_bins(self, offset_max: float) -> FovBins:
        if isinstance(self.offset_bins, u.Quantity):
            edges = self.offset_bins.to_value("deg")
            return FovBins((edges, edges))
        return FovBins.grid(offset_max, 2 * self.offset_bins)

    def fit(
        self, runs: Iterable[ReducedRun], bins: CountsBins, settings: FitSettings, execution: Execution = SERIAL
    ) -> tuple[RateModel, None]:
        whole = [run.whole() for run in in_own_order(runs)]
        summed = sum_runs(whole, bins, settings.effects, settings.scaling)
        model = self._fit_sum(summed, bins, settings.profile_edges)
        if settings.in_wide_bins and settings.profile_edges is not None:
            # the bins that were asked for are those of the fit; within them events were counted finely
            model = model.in_bins(settings.profile_edges)
        return replace(model, run_scatter=summed.scatter), None

    def _fit_sum(
        self, summed: SummedRuns, bins: CountsBins, profile_edges: np.ndarray | None
    ) -> BinnedModel | ParametricModel:
        return fit_binned(
            summed.counts,
            summed.exposure,
            bins.energy_edges,
            bins.fov,
            profile_edges=profile_edges,
            displacement=summed.displacement,
            aligned=summed.aligned,
        )


class RadialOptions(_PooledOptions):
    """Rate over energy and offset; ``offset_bins``: rings from 0 to offset_max, or their edges.

    Events beyond the last ring have no part in the fit; there the rate goes on for the width of one ring, and is 0
    then.
    """

    type: Literal["radial"] = "radial"

    @model_validator(mode="after")
    def _from_zero(self):
        if not isinstance(self.offset_bins, int) and self.offset_bins[0] < 0:
            raise ValueError(f"offset_bins: got {self.offset_bins}, but offsets >= 0 are needed")
        return self

    def make_fov_bins(self, offset_max: float) -> FovBins:
        if isinstance(self.offset_bins, u.Quantity):
            return FovBins((self.offset_bins.to_value("deg"),))
        return FovBins.rings(offset_max, self.offset_bins)


class GridOptions(_PooledOptions):
    """Rate over energy and a square grid; ``offset_bins``: bins from the centre to offset_max (24 x 24 for 12), or
    edges.

    The grid keeps its corners: the events of the whole square are fitted, those beyond offset_max too. Around it the
    rate goes on for the width of one bin, and is 0 then.
    """

    type: Literal["grid"] = "grid"


class ParameterOptions(Options):
    """Start value, limits and whether it is fixed, of one parameter of a function; what is None is left as it is.

    Ties are callables on an astropy model: ``model.sigma.tied = lambda model: 2 * model.width``.
    """

    value: float | None = None
    min: float | None = None
    max: float | None = None
    fixed: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_text_ties(cls, data):
        if isinstance(data, dict) and "tied" in data:
            raise ValueError(
                f"got tied: {data['tied']!r}, but text is not taken; "
                "tie it by a callable on the astropy model, model.name.tied"
            )
        return data


class ParametricOptions(_PooledOptions):
    """A function of energy, of position or of both, fitted to counts on a grid.

    Parameters
    ----------
    function : str, `~astropy.modeling.Model`, callable or list
        In a file: gaussian, gaussian_gradient, radial_profile, power_law, power_law_cutoffs, or a product such as
        ``"power_law * gaussian"``. In Python also what `~gammapy_accmaker.models.parametric.function.rate_function`
        takes. Of energy in TeV and positions in deg; the rate in s-1 MeV-1 sr-1. A file names a Python function but
        holds no code: what is read from it applies a fitted model, and a fit asks for the function.
    parameters : dict
        `ParameterOptions` by name.
    shared : list of str
        Parameters of a function of position alone that all energies have in common.
    offset_bins : int or edges
        As for `GridOptions`.
    on_failure : {"raise", "flag"}
        What is done where the fit fails; "flag" warns and marks the result of the model.
    """

    remedy: ClassVar[str] = "use another function, or the model 'radial', 'grid' or 'spline'"

    type: Literal["parametric"] = "parametric"
    function: Annotated[Any, PlainSerializer(describe_function, when_used="json")] = None
    parameters: dict[str, ParameterOptions] = {}
    shared: list[str] = []
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12
    on_failure: Literal["raise", "flag"] = "raise"

    @model_validator(mode="after")
    def _fits(self):
        if self.function is None:
            raise ValueError(
                f"function: a parametric model needs one; name {list(READY_SHAPES)}, a product such as "
                "'power_law * gaussian', or in Python an astropy model or a plain function"
            )
        # what was read from a file may apply a model; a fit refuses it
        if not (isinstance(self.function, str) and self.function.startswith(PYTHON)):
            check_shared(rate_function(self.function, self.given_parameters()), self.shared)
        return self

    def check_fit_energy(self, fit_energy: AdaptiveEnergy | u.Quantity | None) -> None:
        if isinstance(fit_energy, AdaptiveEnergy):
            raise ValueError(
                "fit_energy: adaptive needs the model type 'radial' or 'grid', but got 'parametric', which groups "
                "energies itself; leave it null or give edges"
            )

    def __getstate__(self):
        # a fitted model is applied without its function, and so it is where another process does not know it
        state = super().__getstate__()
        if not is_known_elsewhere(self.function):
            state["__dict__"] = state["__dict__"] | {"function": describe_function(self.function)}
        return state

    @property
    def aligns(self) -> bool:
        # a function of energy has a threshold of its own, or none
        return rate_function(self.function, self.given_parameters()).n_inputs == 2

    def _fit_sum(self, summed, bins, profile_edges):
        return fit_parametric(
            summed.counts,
            summed.exposure,
            bins.energy_edges,
            bins.fov,
            self.function,
            parameters=self.given_parameters(),
            shared=tuple(self.shared),
            on_failure=self.on_failure,
            profile_edges=profile_edges,
            displacement=summed.displacement,
            aligned=summed.aligned,
        )

    def given_parameters(self) -> dict[str, dict]:
        """What is set of each parameter."""
        return {name: options.model_dump(exclude_none=True) for name, options in self.parameters.items()}
