"""The groups of options that an `AcceptanceConfig` holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gammapy_accmaker.config_types import AngleEdges, NormModel, OneAngle, OneEnergy, OnePath, SpatialNorm

__all__ = [
    "AdaptiveRingRenormalization",
    "AzimuthOptions",
    "EnergyOptions",
    "ExclusionOptions",
    "FovRenormalization",
    "GridOptions",
    "NoRenormalization",
    "Options",
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
