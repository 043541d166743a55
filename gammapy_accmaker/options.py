"""The groups of options that an `AcceptanceConfig` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator

from gammapy_accmaker.config_types import AngleEdges, Limit, NormModel, OneAngle, OneEnergy, OnePath, SpatialNorm
from gammapy_accmaker.models.parametric_function import PYTHON, check_shared, describe_function, rate_function
from gammapy_accmaker.models.parametric_shapes import READY_SHAPES

__all__ = [
    "AdaptiveEnergy",
    "AdaptiveRingRenormalization",
    "AzimuthOptions",
    "CatalogOptions",
    "EnergyOptions",
    "ExclusionOptions",
    "FovRenormalization",
    "GridOptions",
    "IterativeOptions",
    "MatchingOptions",
    "NoRenormalization",
    "Options",
    "ParameterOptions",
    "ParametricOptions",
    "RadialOptions",
    "RingRenormalization",
    "RunEffectsOptions",
    "SkyPosition",
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


class AdaptiveEnergy(Options):
    """Energy bins of the fit merged until each holds ``min_counts`` unexcluded events or is ``max_width`` decades wide.

    The events of all runs count. The model keeps its energy axis; what is merged is the profile over the field of view.
    """

    type: Literal["adaptive"] = "adaptive"
    min_counts: Annotated[float, Field(gt=0)] = 500
    max_width: Annotated[float, Field(gt=0)] = 0.5


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


class MatchingOptions(Options):
    """A model for each ON run from the OFF runs that `match_observations` takes for it; the options are its arguments.

    ``limits``: largest differences; ``weights``: by criterion, or ``nearest`` or ``conditions``; ``hours`` and ``n_runs``: how
    much is taken for a run; ``same``: keywords that must be equal.
    """

    limits: dict[str, Limit] = {}
    weights: dict[str, Annotated[float, Field(gt=0)]] | Literal["nearest", "conditions"] = {"cos_zenith": 1.0}
    hours: Limit | None = None
    n_runs: Annotated[int, Field(ge=1)] | None = None
    same: list[str] = []


class SkyPosition(Options):
    """A position on the sky, ``{lon: 83.63 deg, lat: 22.01 deg, frame: icrs}``."""

    lon: OneAngle
    lat: OneAngle
    frame: Literal["icrs", "galactic"] = "icrs"

    @model_validator(mode="after")
    def _latitude(self):
        if not abs(self.lat.deg) <= 90:
            raise ValueError(f"lat: got {self.lat}, but -90 to 90 deg are needed")
        return self


class CatalogOptions(Options):
    """Circles around the stars or sources of a table (ecsv, fits, csv, votable).

    ``ra``, ``dec``: its columns of ICRS coordinates; ``radius``: of the circles, or ``radius_column`` in its place;
    ``magnitude``: column of which only values up to ``magnitude_max`` are taken.
    """

    path: OnePath
    ra: str = "ra"
    dec: str = "dec"
    radius: OneAngle | None = None
    radius_column: str | None = None
    magnitude: str | None = None
    magnitude_max: float | None = None

    @model_validator(mode="after")
    def _complete(self):
        if (self.radius is None) == (self.radius_column is None):
            raise ValueError("got both radius and radius_column or neither, but one of them is needed")
        if self.radius is not None and self.radius.deg < 0:
            raise ValueError(f"radius: got {self.radius}, but a radius is >= 0 deg")
        if (self.magnitude is None) != (self.magnitude_max is None):
            raise ValueError("got one of magnitude and magnitude_max, but both or none are needed")
        return self


class IterativeOptions(Options):
    """Significant excess in the stacked sky map of the runs of the fit is excluded, and the fit repeated until none is left.

    ``threshold``: in sigma, or in widths of the significance where these are larger; ``correlation_radius``: of the discs in
    which counts are summed; ``dilation``: around what is found; ``max_iterations``: searches, after which a warning comes.
    """

    threshold: Annotated[float, Field(gt=0)] = 5.0
    correlation_radius: OneAngle = "0.1 deg"
    dilation: OneAngle = "0.1 deg"
    max_iterations: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _positive(self):
        if not (self.correlation_radius.deg > 0 and self.dilation.deg >= 0):
            raise ValueError(
                f"got correlation_radius {self.correlation_radius} and dilation {self.dilation}, but > 0 and >= 0 are needed"
            )
        return self


class ExclusionOptions(Options):
    """Sky positions left out of the fit, of the run effects and of the renormalisation.

    ``regions``: one or more region files; ``mask``: a map file that is False where excluded; ``catalog``: stars or
    sources of a table; ``margin``: around all of these. ``wobble_half``: of runs with the source in the field of view only the
    half of the camera opposite to it is used (not in a ring renormalisation); true: the target of each run's header is the
    source. ``iterative``: what is found in the data is left out too.
    """

    regions: OnePath | list[OnePath] | None = None
    mask: OnePath | None = None
    margin: OneAngle = "0 deg"
    catalog: CatalogOptions | None = None
    wobble_half: bool | SkyPosition = False
    iterative: IterativeOptions | None = None

    @model_validator(mode="after")
    def _files_exist(self):
        for path in self.files():
            if not path.is_file():
                raise ValueError(f"there is no file {path}; give the path of an existing one")
        return self

    def files(self) -> list[Path]:
        """All files that are named."""
        regions = self.regions if isinstance(self.regions, list) else [self.regions]
        catalog = None if self.catalog is None else self.catalog.path
        return [path for path in (*regions, self.mask, catalog) if path is not None]
