"""What gamma-ray sources add to the counts of a run in the camera, from the run's own responses.

gammapy's evaluator gives the expected counts of a source on a map of the sky (effective area, point spread function
and energy dispersion at the source); the track of the camera carries its pixels into the bins of the field of view,
over the time in which they are not excluded.
"""

from __future__ import annotations

from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.data import GTI
from gammapy.datasets.evaluator import MapEvaluator
from gammapy.irf import EffectiveAreaTable2D, EnergyDispersion2D, PSFKernel
from gammapy.irf.core import IRF
from gammapy.makers.utils import make_map_exposure_true_energy
from gammapy.maps import Map, MapAxis, WcsGeom

from gammapy_accmaker.camera.bins import CountsBins
from gammapy_accmaker.camera.track import FovTrack, time_nodes, unit_vectors, vectors_to_lonlat
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.errors import ObservationError
from gammapy_accmaker.models.source_terms import CountsPatch

_TRUE_BINS_PER_DECADE = 20
_ENERGY_MARGIN = 3.0  # factor on the ends of the reconstructed energies, within which true energies matter
MAX_PSF_RADIUS = 1.0  # deg
_PSF_CONTAINMENT = 0.995  # of the widest of the energies that matter
_PSF_OVERSAMPLING = 5  # points along each side of a pixel
_MIN_PIXEL, _MAX_PIXEL, _PIXELS = 0.03, 0.1, 80  # deg, deg, and how many along a side are enough
_SMALLEST_PIXEL = 1e-8  # of the counts of a source; less is rounding
_OFFSET_STEP = 0.02  # deg, of the table of the point spread function


@dataclass(frozen=True)
class SourceOnSky:
    """Expected counts of a source on the sky, each second of livetime.

    Attributes
    ----------
    xyz : `~numpy.ndarray`, shape (n_pixel, 3)
        ICRS unit vectors of the pixels.
    rate : `~numpy.ndarray`, shape (n_energy, n_pixel)
        In s-1, in the reconstructed energy bins.
    lowest : float
        Energy in TeV from which on the responses are to be trusted, as far as they say so (LO_THRES of the format).
    pixel : float
        Width of the pixels in deg.
    """

    xyz: np.ndarray
    rate: np.ndarray
    lowest: float = 0.0
    pixel: float = 0.0

    def in_camera(
        self,
        part: FovTrack,
        livetime: float,
        seen: np.ndarray,
        bins: CountsBins,
        exclusion: Exclusion,
        time_step: float | None,
    ) -> CountsPatch:
        """Expected counts of a part of the run, outside of its exclusion.

        Parameters
        ----------
        part : `FovTrack`
        livetime : float
            Of the part, in s.
        seen : `~numpy.ndarray`, bool, shape (bins.fov.size,)
            Bins of the field of view that hold something.
        bins : `CountsBins`
        exclusion : `Exclusion`
        time_step : float or None
            Resolution in s; None: one step.
        """
        xyz, rate = self.xyz, self.rate
        if len(exclusion):
            free = ~exclusion.contains(xyz)
            xyz, rate = xyz[free], rate[:, free]
        seconds, weights = time_nodes(part.intervals, time_step)
        parts = []
        for matrix, weight in zip(part.matrices_at(seconds), weights / weights.sum(), strict=True):
            lon, lat = vectors_to_lonlat(xyz @ matrix.T)
            # by their middle alone, pixels and bins of nearly one size would beat
            for column, share in bins.fov.spread(np.degrees(lon), np.degrees(lat), self.pixel):
                here = np.flatnonzero((column >= 0) & (share > 0) & seen[column])
                parts.append((here, column[here], weight * share[here]))
        return CountsPatch.spread(livetime * rate, parts, bins.fov.size)


def expected_on_sky(
    models, observation, track: FovTrack, energy_edges: np.ndarray, reach: float
) -> list[SourceOnSky | None]:
    """Expected counts of sources in a run, each second of livetime, from the responses of the run.

    Parameters
    ----------
    models : list of `~gammapy.modeling.models.SkyModel`
    observation : `~gammapy.data.Observation`
    track : `FovTrack`
    energy_edges : `~numpy.ndarray`, shape (n_energy + 1,)
        Of the reconstructed energy, in TeV.
    reach : float
        Offset in deg up to which counts are wanted.

    Returns
    -------
    counts : list of `SourceOnSky` or None
        One for each source; None for one that adds nothing there.

    Raises
    ------
    ObservationError
        Where the run has no effective area, or one for a region (RAD_MAX).
    """
    middle = track.matrices_at(np.array([0.5 * (track.intervals[0, 0] + track.intervals[-1, 1])]))[0, 0]
    lon, lat = vectors_to_lonlat(middle)
    pointing = SkyCoord(lon, lat, unit="rad", frame="icrs")
    found: list[SourceOnSky | None] = []
    responses = None
    for model in models:
        center, radius = model_extent(model)
        if center is not None and center.separation(pointing).deg > reach + radius + MAX_PSF_RADIUS:
            found.append(None)
            continue
        # read once, where a source needs them: gammapy reads a file at each access
        responses = _Responses.of(observation, energy_edges) if responses is None else responses
        found.append(responses.counts(model, pointing, center, radius, reach))
    return found


@dataclass(frozen=True)
class _Responses:
    """Those of a run; None where it has none."""

    aeff: EffectiveAreaTable2D
    psf: IRF | None
    edisp: EnergyDispersion2D | None
    true: MapAxis
    reconstructed: MapAxis
    gti: GTI

    @property
    def lowest(self) -> float:
        """Energy in TeV from which on they are to be trusted, as far as they say so (LO_THRES of the format)."""
        given = self.aeff.meta.get("LO_THRES") if self.aeff.meta else None
        return float(given) if isinstance(given, (int, float)) and np.isfinite(given) else 0.0

    @classmethod
    def of(cls, observation, energy_edges):
        aeff, edisp = observation.aeff, observation.edisp
        if aeff is None:
            raise ObservationError(
                f"observation {observation.obs_id}: it has no effective area, from which the counts of sources follow; "
                "add the responses to the DL3, or exclude the sources in place of `sources`"
            )
        if aeff.is_pointlike:
            raise ObservationError(
                f"observation {observation.obs_id}: its responses are for a region (RAD_MAX), and do not tell the "
                "counts of a source outside of it; give full-enclosure responses, or exclude the sources in place of "
                "`sources`"
            )
        reconstructed = MapAxis.from_energy_edges(energy_edges * u.TeV, name="energy")
        return cls(
            aeff, observation.psf, edisp, _true_energies(aeff, energy_edges, edisp), reconstructed, observation.gti
        )

    def counts(self, model, pointing, center, radius, reach):
        """`SourceOnSky` of a source, which is ``center`` and ``radius`` (deg) wide."""
        offset = min(center.separation(pointing).deg, reach) if center is not None else 0.0
        table = None
        if self.psf is not None and model.apply_irf["psf"]:
            table = _PsfTable.of(self.psf, self.true, offset)
        margin = 0.0 if table is None else table.radius
        if center is None or radius > reach:
            center, half_width = pointing, reach + margin
        else:
            half_width = radius + margin
        pixel = float(np.clip(2 * half_width / _PIXELS, _MIN_PIXEL, _MAX_PIXEL))
        width = 2 * half_width + 2 * pixel
        geom = WcsGeom.create(skydir=center, width=width, binsz=pixel, proj="TAN", frame="icrs", axes=[self.true])
        kernel = None if table is None else table.kernel(geom, pixel)
        exposure = make_map_exposure_true_energy(pointing, 1 * u.s, self.aeff, geom)
        exposure.data = np.nan_to_num(np.maximum(exposure.data, 0))
        edisp = None
        if self.edisp is not None:  # a model that is not to be dispersed takes the energies of the kernel alone
            edisp = self.edisp.to_edisp_kernel(
                offset * u.deg, energy_axis_true=self.true, energy_axis=self.reconstructed
            )
        evaluator = MapEvaluator(model, exposure=exposure, psf=kernel, edisp=edisp, gti=self.gti)
        rate = evaluator.compute_npred().data.reshape(self.reconstructed.nbin, -1)
        sky = geom.to_image().get_coord(frame="icrs").skycoord
        rate = np.maximum(rate, 0)  # a convolution leaves rounding of both signs
        in_pixel = rate.sum(axis=0)
        some = np.flatnonzero(in_pixel > _SMALLEST_PIXEL * in_pixel.sum())
        xyz = unit_vectors(sky.ra.rad, sky.dec.rad).reshape(-1, 3)
        return SourceOnSky(xyz[some], rate[:, some], self.lowest, pixel) if len(some) else None


def model_extent(model) -> tuple[SkyCoord | None, float]:
    """Position and radius in deg; no position for what is everywhere."""
    radius = model.evaluation_radius
    if radius is None or model.position is None or not np.isfinite(radius.to_value("deg")):
        return None, np.inf
    return model.position.icrs, float(radius.to_value("deg"))


def _true_energies(aeff, energy_edges, edisp):
    """Axis of the true energy; without energy dispersion it is the reconstructed one."""
    if edisp is None:
        return MapAxis.from_energy_edges(energy_edges * u.TeV, name="energy_true")
    known = aeff.axes["energy_true"].edges.to_value("TeV")
    low, high = max(energy_edges[0] / _ENERGY_MARGIN, known[0]), min(energy_edges[-1] * _ENERGY_MARGIN, known[-1])
    n = max(int(np.ceil(_TRUE_BINS_PER_DECADE * np.log10(high / low))), 1)
    return MapAxis.from_energy_bounds(low * u.TeV, high * u.TeV, nbin=n, name="energy_true")


@dataclass(frozen=True)
class _PsfTable:
    """Point spread function at one offset.

    Attributes
    ----------
    separation : `~numpy.ndarray`, shape (n,)
        In deg, from 0.
    density : `~numpy.ndarray`, shape (n_energy, n)
        Per solid angle, in any unit.
    radius : float
        In deg, within which nearly all of it lies.
    """

    separation: np.ndarray
    density: np.ndarray
    radius: float

    @classmethod
    def of(cls, psf, true, offset):
        separation = np.arange(0, MAX_PSF_RADIUS + 0.5 * _OFFSET_STEP, 0.25 * _OFFSET_STEP)
        if "rad" in psf.axes.names:  # beyond its table it is not known
            separation = separation[separation <= psf.axes["rad"].edges[-1].to_value("deg")]
        density = psf.evaluate(
            energy_true=true.center[:, None], rad=separation * u.deg, offset=offset * u.deg
        ).to_value("sr-1")
        density = np.nan_to_num(np.maximum(density, 0))
        within = np.cumsum(density * separation, axis=1)
        known = within[:, -1] > 0
        within = within[known] / within[known, -1:]
        radius = separation[(within < _PSF_CONTAINMENT).sum(axis=1).clip(max=len(separation) - 1)]
        return cls(separation, density, float(np.max(radius, initial=0.0)))

    def kernel(self, geom, pixel):
        """Kernel on the pixels of a map; where the function is not known it leaves the map as it is."""
        n = int(np.ceil(self.radius / pixel))
        fine = (np.arange((2 * n + 1) * _PSF_OVERSAMPLING) + 0.5) / _PSF_OVERSAMPLING - n - 0.5
        distance = pixel * np.hypot(fine[:, None], fine)
        shape = (2 * n + 1, _PSF_OVERSAMPLING, 2 * n + 1, _PSF_OVERSAMPLING)
        images = np.array(
            [
                np.interp(distance, self.separation, row, right=0.0).reshape(shape).mean(axis=(1, 3))
                for row in self.density
            ]
        )
        images[:, n, n] += ~images.any(axis=(1, 2))
        images /= images.sum(axis=(1, 2), keepdims=True)
        own = WcsGeom.create(npix=2 * n + 1, binsz=pixel, proj="TAN", skydir=geom.center_skydir, axes=geom.axes)
        return PSFKernel(Map.from_geom(own, data=images), normalize=False)
