"""The other groups of options that an `AcceptanceConfig` holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from gammapy_accmaker.config.types import (
    EnergyEdges,
    Limit,
    NormModel,
    OneAngle,
    Options,
    SpatialNorm,
)

__all__ = [
    "AdaptiveRingRenormalization",
    "FovRenormalization",
    "MatchingOptions",
    "NoRenormalization",
    "RingRenormalization",
    "RunEffectsOptions",
]


class RunEffectsOptions(Options):
    """What differs from run to run and is taken from the run's own unexcluded events.

    ``norm``: a factor; ``tilt``: and a power law; ``shift``: and instead of it an energy shift, a smooth spectral
    residual and, with ``gradient``, gradients over the field of view. ``tilt`` and ``shift`` need the spline model.
    ``min_counts``: a run is adapted to by the energies (in groups of 0.1 dex) in which it has so many unexcluded events.
    A run whose norm lies outside of ``norm_limits``, such as [0.5, 2], is flagged in the run table and keeps its norm.

    Attributes
    ----------
    norm_energy : energies
        For ``norm`` and ``tilt``: range over which they are fitted, such as [0.5 TeV, 20 TeV]. The threshold differs from run to
        run, which a norm cannot follow; so null stands for the energies where the runs agree in shape, above the thresholds.
        The run table has them.
    """

    type: Literal["none", "norm", "tilt", "shift"] = "shift"
    gradient: bool = True
    min_counts: Annotated[int, Field(ge=0)] = 0
    norm_limits: tuple[float, float] | None = None
    norm_energy: EnergyEdges | None = None

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
        if self.norm_energy is not None and (len(self.norm_energy) != 2 or self.norm_energy[0] <= 0):
            raise ValueError(
                f"norm_energy: got {self.norm_energy}, but the two ends of a range of energies > 0 are needed, such as [0.5 TeV, 20 TeV]"
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

    Attributes
    ----------
    limits : mapping
        Largest difference by criterion: zenith, cos_zenith, azimuth, pointing, time, muon_efficiency or a keyword of the events.
    weights : mapping or str
        Weight by criterion, or ``nearest`` (time and pointing) or ``conditions`` (zenith, azimuth, muon efficiency, time).
    hours : time
        OFF ontime for each ON run; a number is in h.
    n_runs : int
        Largest number of OFF runs for each ON run.
    same : list of str
        Keywords of the events that must be equal, such as TELLIST.
    """

    limits: dict[str, Limit] = {}
    weights: dict[str, Annotated[float, Field(gt=0)]] | Literal["nearest", "conditions"] = {"cos_zenith": 1.0}
    hours: Limit | None = None
    n_runs: Annotated[int, Field(ge=1)] | None = None
    same: list[str] = []
