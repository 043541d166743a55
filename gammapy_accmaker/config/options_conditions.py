"""Options of how the rate follows zenith angle and azimuth."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from gammapy_accmaker.config.types import (
    AngleEdges,
    OneAngle,
    Options,
    TimeStep,
)

__all__ = [
    "BinnedAzimuth",
    "BinnedZenith",
    "ContinuousZenith",
    "EastWestAzimuth",
    "InterpolatedZenith",
    "NoAzimuth",
    "NoZenith",
    "ZenithBins",
]


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
