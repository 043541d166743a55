"""The groups of options that an `AcceptanceConfig` holds besides those of the model, in the order of its keys: the
energy axis, how the rate follows zenith angle and azimuth, the exclusion, run effects, the renormalisation of a
background, and matching with OFF runs.

Several options are one of some kinds, told apart by ``type``; a kind has the options that it needs, and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import astropy.units as u
import numpy as np
from pydantic import Field, model_validator

from gammapy_accmaker.config.types import (
    AngleEdges,
    EnergyEdges,
    Limit,
    NormModel,
    OneAngle,
    OneEnergy,
    OnePath,
    Options,
    SpatialNorm,
    TimeStep,
)
from gammapy_accmaker.models.base import EffectSettings


class EnergyOptions(Options):
    """Energy axis of the fitted model.

    Attributes
    ----------
    min, max : energy
        Ends of the axis. Outside of them no background is expected.
    nbins_per_decade : int
        Energy bins of radial, grid and parametric models. The spline is fitted to 50 bins per decade whatever stands
        here.
    """

    min: OneEnergy = u.Quantity("0.1 TeV")
    max: OneEnergy = u.Quantity("100 TeV")
    nbins_per_decade: Annotated[int, Field(ge=1)] = 10

    @model_validator(mode="after")
    def _ordered(self):
        if not 0 * u.TeV < self.min < self.max:
            raise ValueError(f"got min {self.min} and max {self.max}, but 0 < min < max is needed")
        return self


class AdaptiveEnergy(Options):
    """Energy bins of the fit, merged up to a count target and a largest width.

    The model keeps its energy axis; what the merged bins share is the profile over the field of view.

    Attributes
    ----------
    min_counts : float
        Unexcluded events that each bin is to hold, of all runs together.
    max_width : float
        Largest width of a merged bin, in decades.
    """

    type: Literal["adaptive"] = "adaptive"
    min_counts: Annotated[float, Field(gt=0)] = 500
    max_width: Annotated[float, Field(gt=0)] = 0.5


class NoZenith(Options):
    """The rate does not follow the zenith angle."""

    type: Literal["none"] = "none"


class ContinuousZenith(Options):
    """The rate is a smooth function of the zenith angle; for the spline model."""

    type: Literal["continuous"] = "continuous"


class ZenithBins(Options):
    """How runs are pooled in bins of cos zenith, from the zenith down.

    A bin grows by ``initial_width`` until it holds ``min_livetime`` and ``min_observations`` (null: not asked for);
    what is left at the end goes to its neighbour.

    Parameters
    ----------
    initial_width : float
        Of cos zenith. Within a bin the runs share one profile over the field of view and, if ``binned``, one trigger
        threshold: few runs at large zenith angles, where it moves fast, are then better described by small bins (0.02,
        ``min_observations: 1``), at the price of more noise.
    min_livetime : quantity, optional
        Of all runs in a bin.
    min_observations : int, optional
        Runs in a bin. One that is split counts in each bin by its part of the time.
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
    """Between the mean zenith angles of bins the rate (``scale: linear``) or its logarithm is linear in cos zenith.

    Runs are pooled, and rates interpolated, at energies that are scaled by a power of cos zenith, which the runs of the
    fit tell, so that their thresholds lie on each other.
    """

    type: Literal["interpolated"] = "interpolated"
    scale: Literal["linear", "log"] = "log"


class AzimuthOptions(Options):
    """How runs are pooled in azimuth."""

    @property
    def edges(self) -> np.ndarray:
        """Azimuths in deg, in [0, 360), at which runs are cut."""
        return np.zeros(0)


class NoAzimuth(AzimuthOptions):
    """The rate does not follow the azimuth."""

    type: Literal["none"] = "none"


class EastWestAzimuth(AzimuthOptions):
    """One model for pointings east of the meridian, and one for west."""

    type: Literal["east_west"] = "east_west"

    @property
    def edges(self) -> np.ndarray:
        return np.array([0.0, 180.0])


class BinnedAzimuth(AzimuthOptions):
    """One model for each sector of azimuth; ``bins``: a number, from north on, or edges,
    the last of which joins the first."""

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
    """Circles around the stars or sources of a table.

    Attributes
    ----------
    path : path
        Table that astropy reads: ecsv, fits, csv, votable.
    ra, dec : str
        Its columns of ICRS coordinates; in deg where they have no unit.
    radius : angle
        Radius of all circles.
    radius_column : str
        Column with the radius of each, in place of ``radius``.
    magnitude : str
        Column of which only values up to ``magnitude_max`` are taken.
    magnitude_max : float
        Magnitude of the faintest star that is taken.
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
    """Significant excess in the stacked sky map of the runs of the fit is excluded, and the fit repeated until none is
    left.

    Attributes
    ----------
    threshold : float
        Significance above which a peak counts as a source, in sigma; where the significance off the sources is wider
        than 1, in units of that width.
    correlation_radius : angle
        Radius of the smallest discs in which counts are summed; others are 2.5 and 5 times as large.
    dilation : angle
        Added to the radius of what is found.
    max_iterations : int
        Largest number of searches; a warning tells where the last one still found something.
    """

    threshold: Annotated[float, Field(gt=0)] = 5.0
    correlation_radius: OneAngle = "0.1 deg"
    dilation: OneAngle = "0.1 deg"
    max_iterations: Annotated[int, Field(ge=1)] = 5

    @model_validator(mode="after")
    def _positive(self):
        if not (self.correlation_radius.deg > 0 and self.dilation.deg >= 0):
            raise ValueError(
                f"got correlation_radius {self.correlation_radius} and dilation {self.dilation}, "
                "but > 0 and >= 0 are needed"
            )
        return self


class ExclusionOptions(Options):
    """Sky positions left out of the fit, of the run effects and of the renormalisation.

    Attributes
    ----------
    regions : path or list of paths
        Region files: ds9, crtf or fits.
    mask : path
        Map that is False where excluded.
    margin : angle
        Width of what is excluded around regions, mask and catalog besides.
    catalog : mapping
        Circles around the stars or sources of a table: path, ra, dec, radius or radius_column, magnitude,
        magnitude_max.
    wobble_half : bool or mapping
        Use only the half of the camera opposite to the source, of each run with the source in its field of view (not
        for rings). True: the source is the target in the header of each run; else its lon, lat and frame. The
        background in the other half is then off by 1 to 3 %, since few wobble positions do not tell a norm from a
        gradient over the camera; a circle around the source is more accurate where the source fits into one.
    iterative : mapping
        Leave out what is found in the data as well, and fit again: threshold, correlation_radius, dilation,
        max_iterations.
    """

    # lists first: pydantic 2.8 would write one as the text of a path
    regions: list[OnePath] | OnePath | None = None
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


class RunEffectsOptions(Options):
    """What differs from run to run and is taken from the run's own unexcluded events.

    Attributes
    ----------
    type : str
        norm: a factor; tilt: a factor and a power law, for the spline model; shift: a factor and an energy shift, and
        for the spline model a smooth spectral residual and, with ``gradient``, gradients over the field of view.
    gradient : bool
        Whether shift has gradients over the field of view.
    min_counts : int
        The model is adapted to a run by those energies (in groups of 0.1 dex) in which the run has at least so many
        unexcluded events.
    norm_limits : two numbers
        A run whose norm lies outside of these, such as [0.5, 2], is flagged in the run table, and keeps its norm.
    norm_energy : energies
        For ``norm`` and ``tilt``: the range over which they are fitted, such as [0.5 TeV, 20 TeV]. The threshold
        differs from run to run, and a norm cannot follow it; null stands for the energies above the thresholds, where
        the spectra of the runs agree in shape. The run table has the range.
    """

    type: Literal["none", "norm", "tilt", "shift"] = "shift"
    gradient: bool = True
    min_counts: Annotated[int, Field(ge=0)] = 0
    norm_limits: tuple[float, float] | None = None
    norm_energy: EnergyEdges | None = None

    @property
    def settings(self) -> EffectSettings:
        """The same as the numerics take it."""
        energies = None if self.norm_energy is None else tuple(self.norm_energy.to_value("TeV").tolist())
        return EffectSettings(self.type, self.gradient, self.min_counts, energies)

    @model_validator(mode="after")
    def _norms_in_order(self):
        if self.norm_limits is not None:
            low, high = self.norm_limits
            if not 0 <= low < high:
                raise ValueError(f"norm_limits: got {list(self.norm_limits)}, but 0 <= low < high is needed")
            if self.type == "none":
                raise ValueError(
                    f"norm_limits: got {list(self.norm_limits)}, but without run effects there is no norm; "
                    "use type norm"
                )
        if self.norm_energy is not None and (len(self.norm_energy) != 2 or self.norm_energy[0] <= 0):
            raise ValueError(
                f"norm_energy: got {self.norm_energy}, but the two ends of a range of energies > 0 are needed, "
                "such as [0.5 TeV, 20 TeV]"
            )
        return self


class NoRenormalization(Options):
    """The background is left as the model predicts it."""

    type: Literal["none"] = "none"


class FovRenormalization(Options):
    """`~gammapy.makers.FoVBackgroundMaker` outside of the exclusion.

    Attributes
    ----------
    method : str
        scale: one factor, counts over background; fit: the spectral and spatial model are fitted.
    spectral_model : str or mapping
        Norm model of gammapy, such as pl-norm or piecewise-norm.
    spatial_model : str or mapping
        Spatial model of gammapy that the background is multiplied by.
    min_counts, min_npred_background : float
        What a run must have to be scaled; else it is masked, as gammapy does.
    fit_options : mapping
        Arguments of `~gammapy.modeling.Fit`.
    prior : bool
        Whether norm and tilt of the model that stays on the dataset have a Gaussian prior: what is known of them
        without the events that they are fitted to.
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
    """`~gammapy.makers.RingBackgroundMaker` outside of the exclusion; for datasets with one energy bin.

    Attributes
    ----------
    r_in : angle
        Inner radius of the ring.
    width : angle
        Width of the ring.
    """

    type: Literal["ring"] = "ring"
    r_in: OneAngle = "0.5 deg"
    width: OneAngle = "0.3 deg"


class AdaptiveRingRenormalization(Options):
    """`~gammapy.makers.AdaptiveRingBackgroundMaker` outside of the exclusion; for datasets with one energy bin.

    Attributes
    ----------
    r_in, width : angle
        Inner radius and width of the ring that is tried first.
    r_out_max : angle
        Largest outer radius.
    stepsize : angle
        By which the ring grows.
    threshold_alpha : float
        Ratio of the acceptance in the disc to that in the ring above which the ring grows.
    theta : angle
        Radius of the disc whose acceptance is compared.
    method : str
        Whether the ring keeps its width and grows outwards, or keeps its inner radius and widens.
    """

    type: Literal["adaptive_ring"] = "adaptive_ring"
    r_in: OneAngle = "0.5 deg"
    r_out_max: OneAngle = "1.5 deg"
    width: OneAngle = "0.3 deg"
    stepsize: OneAngle = "0.02 deg"
    threshold_alpha: float = 0.1
    theta: OneAngle = "0.22 deg"
    method: Literal["fixed_width", "fixed_r_in"] = "fixed_width"


_DEFAULT_BANDS = 3


class NoSources(Options):
    """No sources in the likelihood of the fit, but those that are given to it as an argument."""

    type: Literal["none"] = "none"

    @property
    def bands(self) -> int:
        """Bands of energy in which a source that is given has an amplitude of its own, at most."""
        return _DEFAULT_BANDS

    def files(self) -> list[Path]:
        """All files that are named."""
        return []


class KnownSources(Options):
    """Gamma-ray sources that stand in the likelihood of the fit beside the background, so that it does not eat them.

    Attributes
    ----------
    models : path
        Models file of gammapy; null: those that are given as an argument. The amplitude (or norm) of a source is fitted
        unless it is frozen; all else of it stays as it is.
    bands : int
        Bands of energy, with about as many expected counts each, in which a source has an amplitude of its own: above
        the thresholds of the runs, and as many below.
    """

    type: Literal["models"] = "models"
    models: OnePath | None = None
    bands: Annotated[int, Field(ge=1)] = _DEFAULT_BANDS

    @model_validator(mode="after")
    def _file_exists(self):
        if self.models is not None and not self.models.is_file():
            raise ValueError(f"there is no file {self.models}; give the path of a models file of gammapy")
        return self

    def files(self) -> list[Path]:
        """All files that are named."""
        return [] if self.models is None else [self.models]


class FoundSources(IterativeOptions):
    """Sources that nobody knows of are looked for in the data, left out, and the fit repeated until none is left.

    It is the search of ``exclusion: {iterative: {}}`` at a lower threshold; fields without a source stay as they are.

    Attributes
    ----------
    bands : int
        Bands of energy of those sources that are given as an argument besides: see ``sources: {type: models}``.
    """

    type: Literal["found"] = "found"
    threshold: Annotated[float, Field(gt=0)] = 4.5
    max_iterations: Annotated[int, Field(ge=1)] = 8
    bands: Annotated[int, Field(ge=1)] = _DEFAULT_BANDS

    def files(self) -> list[Path]:
        """All files that are named."""
        return []


class MatchingOptions(Options):
    """A model for each ON run from the OFF runs that `match_observations` takes for it; the options are its arguments.

    Attributes
    ----------
    limits : mapping
        Largest difference by criterion: zenith, cos_zenith, azimuth, pointing, time, muon_efficiency or a keyword of
        the events.
    weights : mapping or str
        Weight by criterion, or ``nearest`` (time and pointing) or ``conditions`` (zenith, azimuth, muon efficiency,
        time).
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
