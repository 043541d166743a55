"""The groups of options that an `AcceptanceConfig` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gammapy_accmaker.config_types import AngleEdges, NormModel, OneAngle, OneEnergy, OnePath, SpatialNorm, TimeStep

__all__ = [
    "AdaptiveRingRenormalization",
    "BinnedAzimuth",
    "BinnedZenith",
    "ContinuousZenith",
    "EastWestAzimuth",
    "EnergyOptions",
    "ExclusionOptions",
    "FovRenormalization",
    "GridOptions",
    "InterpolatedZenith",
    "NoAzimuth",
    "NoRenormalization",
    "NoZenith",
    "Options",
    "RadialOptions",
    "RingRenormalization",
    "RunEffectsOptions",
    "SplineOptions",
    "ZenithBins",
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


class NoZenith(Options):
    """The rate does not follow the zenith angle."""

    type: Literal["none"] = "none"


class ContinuousZenith(Options):
    """The rate is a smooth function of the zenith angle; for the spline model."""

    type: Literal["continuous"] = "continuous"


class ZenithBins(Options):
    """How runs are pooled in bins of cos zenith, from the zenith down.

    A bin grows by ``initial_width`` until it holds ``min_livetime`` and ``min_observations`` (null: not asked for); what is left
    at the end goes to its neighbour.

    Parameters
    ----------
    initial_width : float
        Of cos zenith.
    min_livetime : quantity, optional
    min_observations : int, optional
        A run that is split counts in each bin by its part of the time.
    per_wobble : bool
        Whether each wobble position that is seen in a bin must hold both minima.
    max_wobble_separation : angle
        Pointings that are closer than this, or linked by others, are one wobble position.
    split_runs : bool
        Whether a run goes to several bins, cut in time at their edges, or as a whole to that of its mean zenith angle.
    """

    initial_width: Annotated[float, Field(gt=0, le=1)] = 0.05
    min_livetime: TimeStep | None = None
    min_observations: Annotated[int, Field(ge=1)] | None = 3
    per_wobble: bool = False
    max_wobble_separation: OneAngle = "0.4 deg"
    split_runs: bool = False

    @model_validator(mode="after")
    def _some_minimum(self):
        if self.min_livetime is None and self.min_observations is None:
            raise ValueError("min_livetime, min_observations: got null for both, but one of them is needed")
        if self.min_livetime is not None and self.min_livetime.value <= 0:
            raise ValueError(
                f"min_livetime: got {self.min_livetime}, but more than 0 is needed; leave it null for none"
            )
        if self.max_wobble_separation.deg <= 0:
            raise ValueError(f"max_wobble_separation: got {self.max_wobble_separation}, but more than 0 deg is needed")
        return self


class BinnedZenith(ZenithBins):
    """One model for each bin of cos zenith."""

    type: Literal["binned"] = "binned"


class InterpolatedZenith(ZenithBins):
    """Between the mean zenith angles of bins the rate (``scale: linear``) or its logarithm is linear in cos zenith."""

    type: Literal["interpolated"] = "interpolated"
    scale: Literal["linear", "log"] = "log"


class NoAzimuth(Options):
    """The rate does not follow the azimuth."""

    type: Literal["none"] = "none"

    @property
    def edges(self) -> np.ndarray:
        """Azimuths in deg, in [0, 360), at which runs are cut."""
        return np.zeros(0)


class EastWestAzimuth(NoAzimuth):
    """One model for pointings east of the meridian, and one for west."""

    type: Literal["east_west"] = "east_west"

    @property
    def edges(self) -> np.ndarray:
        return np.array([0.0, 180.0])


class BinnedAzimuth(NoAzimuth):
    """One model for each sector of azimuth; ``bins``: a number, from north on, or edges, the last of which joins the first."""

    type: Literal["binned"] = "binned"
    bins: Annotated[int, Field(ge=2)] | AngleEdges = 4

    @model_validator(mode="after")
    def _in_one_turn(self):
        if not isinstance(self.bins, int) and (np.ptp(self.bins.to_value("deg")) > 360 or len(self.edges) < 2):
            raise ValueError(f"bins: got {self.bins}, but edges of at least two sectors within one turn are needed")
        return self

    @property
    def edges(self) -> np.ndarray:
        if isinstance(self.bins, int):
            return np.arange(self.bins) * 360 / self.bins
        return np.unique(self.bins.to_value("deg") % 360)


class RunEffectsOptions(Options):
    """What differs from run to run and is taken from the run's own unexcluded events.

    ``norm``: a factor; ``tilt``: and a power law; ``shift``: and instead of it an energy shift, a smooth spectral
    residual and, with ``gradient``, gradients over the field of view. ``tilt`` and ``shift`` need the spline model.
    """

    type: Literal["none", "norm", "tilt", "shift"] = "shift"
    gradient: bool = True


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
