"""The groups of options that an `AcceptanceConfig` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from gammapy_accmaker.config_types import AngleEdges, NormModel, OneAngle, OneEnergy, OnePath, SpatialNorm
from gammapy_accmaker.models.parametric_function import PYTHON, check_shared, describe_function, rate_function
from gammapy_accmaker.models.parametric_shapes import READY_SHAPES

__all__ = [
    "AdaptiveRingRenormalization",
    "AzimuthOptions",
    "EnergyOptions",
    "ExclusionOptions",
    "FovRenormalization",
    "GridOptions",
    "NoRenormalization",
    "Options",
    "ParameterOptions",
    "ParametricOptions",
    "RadialOptions",
    "RingRenormalization",
    "RunEffectsOptions",
    "SplineOptions",
    "ZenithOptions",
]


class Options(BaseModel):
    """Refuses unknown keys; an option is changed by `AcceptanceConfig.update`, not in place."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, validate_default=True)


class SplineOptions(Options):
    """Smooth rate over energy, offset and zenith angle with an asymmetry: the joint model, adapted to each run.

    ``covariates``: keywords of the event header, such as MUONEFF, that norm and energy scale may follow.
    """

    type: Literal["spline"] = "spline"
    covariates: list[str] = ["MUONEFF"]


class RadialOptions(Options):
    """Rate over energy and offset; ``offset_bins``: rings from 0 to offset_max, or their edges."""

    type: Literal["radial"] = "radial"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12

    @model_validator(mode="after")
    def _from_zero(self):
        if not isinstance(self.offset_bins, int) and self.offset_bins[0] < 0:
            raise ValueError(f"offset_bins: got {self.offset_bins}, but offsets >= 0 are needed")
        return self


class GridOptions(Options):
    """Rate over energy and a square grid; ``offset_bins``: bins from the centre to offset_max (24 x 24 for 12), or edges."""

    type: Literal["grid"] = "grid"
    offset_bins: Annotated[int, Field(ge=1)] | AngleEdges = 12


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
                f"got tied: {data['tied']!r}, but text is not taken; tie it by a callable on the astropy model, model.name.tied"
            )
        return data


class ParametricOptions(Options):
    """A function of energy, of position or of both, fitted to counts on a grid.

    Parameters
    ----------
    function : str, `~astropy.modeling.Model`, callable or list
        In a file: gaussian, gaussian_gradient, radial_profile, power_law, power_law_cutoffs, or a product such as
        ``"power_law * gaussian"``. In Python also what `~gammapy_accmaker.models.parametric_function.rate_function` takes.
        Of energy in TeV and positions in deg; the rate in s-1 MeV-1 sr-1. A file names a Python function but holds no code:
        what is read from it applies a fitted model, and a fit asks for the function.
    parameters : dict
        `ParameterOptions` by name.
    shared : list of str
        Parameters of a function of position alone that all energies have in common.
    offset_bins : int or edges
        As for `GridOptions`.
    on_failure : {"raise", "flag"}
        What is done where the fit fails; "flag" warns and marks the result of the model.
    """

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

    def given_parameters(self) -> dict[str, dict]:
        """What is set of each parameter."""
        return {name: options.model_dump(exclude_none=True) for name, options in self.parameters.items()}


class EnergyOptions(Options):
    """Energy axis of the fitted model."""

    min: OneEnergy = u.Quantity("0.1 TeV")
    max: OneEnergy = u.Quantity("100 TeV")
    nbins_per_decade: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _ordered(self):
        if not 0 * u.TeV < self.min < self.max:
            raise ValueError(f"got min {self.min} and max {self.max}, but 0 < min < max is needed")
        return self


class ZenithOptions(Options):
    """How the rate follows the zenith angle of the pointing."""

    type: Literal["none", "continuous"] = "continuous"


class AzimuthOptions(Options):
    """How the rate follows the azimuth of the pointing."""

    type: Literal["none"] = "none"


class RunEffectsOptions(Options):
    """What differs from run to run and is taken from the run's own unexcluded events.

    ``norm``: a factor; ``tilt``: and a power law; ``shift``: and instead of it an energy shift, a smooth spectral
    residual and, with ``gradient``, gradients over the field of view. ``tilt`` and ``shift`` need the spline model.
    ``min_counts``: a run is adapted to by the energies (in groups of 0.1 dex) in which it has so many unexcluded events.
    A run whose norm lies outside of ``norm_limits``, such as [0.5, 2], is flagged in the run table and keeps its norm.
    """

    type: Literal["none", "norm", "tilt", "shift"] = "shift"
    gradient: bool = True
    min_counts: Annotated[int, Field(ge=0)] = 0
    norm_limits: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _norms_in_order(self):
        if self.norm_limits is not None:
            low, high = self.norm_limits
            if not 0 <= low < high:
                raise ValueError(f"norm_limits: got {list(self.norm_limits)}, but 0 <= low < high is needed")
            if self.type == "none":
                raise ValueError(
                    f"norm_limits: got {list(self.norm_limits)}, but without run effects there is no norm; use type norm"
                )
        return self


class NoRenormalization(Options):
    """The background is left as the model predicts it."""

    type: Literal["none"] = "none"


class FovRenormalization(Options):
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


class RingRenormalization(Options):
    """`~gammapy.makers.RingBackgroundMaker` outside of the exclusion; for datasets with one energy bin."""

    type: Literal["ring"] = "ring"
    r_in: OneAngle = "0.5 deg"
    width: OneAngle = "0.3 deg"


class AdaptiveRingRenormalization(Options):
    """`~gammapy.makers.AdaptiveRingBackgroundMaker` outside of the exclusion; for datasets with one energy bin."""

    type: Literal["adaptive_ring"] = "adaptive_ring"
    r_in: OneAngle = "0.5 deg"
    r_out_max: OneAngle = "1.5 deg"
    width: OneAngle = "0.3 deg"
    stepsize: OneAngle = "0.02 deg"
    threshold_alpha: float = 0.1
    theta: OneAngle = "0.22 deg"
    method: Literal["fixed_width", "fixed_r_in"] = "fixed_width"


class ExclusionOptions(Options):
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
