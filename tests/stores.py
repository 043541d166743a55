"""Simulated stores and models with a known truth, made once for all tests that ask for them."""

import shutil
from dataclasses import dataclass, field
from functools import cache

import astropy.units as u
import numpy as np
from astropy.table import Table
from gammapy.data import EventList, Observation
from gammapy.maps import MapAxis, WcsGeom
from regions import CircleSkyRegion
from shared import made_once

from gammapy_accmaker.camera.bins import FovBins, energy_edges_per_decade
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.binned import fit_binned
from gammapy_accmaker.simulation.store import BackgroundTruth, simulate_data_store

EDGES = np.geomspace(0.1, 100, 31)  # TeV
WIDE_TRUTH = BackgroundTruth(offset_max=4)  # its edge lies beyond the corners of the grids
IRFS = ["aeff", "edisp", "psf"]
PLAIN = {"run_effects": {"type": "none"}, "zenith": {"type": "none"}}
NORM = {"run_effects": {"type": "norm"}, "zenith": {"type": "none"}}


def options(kind, effects="norm", **more):
    """Configuration of a binned model; the types are always named, since their defaults may change."""
    return {"model": {"type": kind}, **(PLAIN if effects == "none" else NORM), **more}


def simulated(name, **settings):
    """Simulated store of a name, made once in a session; one name has one set of settings."""
    return made_once(name, lambda folder: simulate_data_store(folder / "dl3", **settings))


@cache
def plain_store():
    """Runs that share one truth: no scatter, no dependence on zenith, no source; 6 % dead time and a GTI gap."""
    truth = BackgroundTruth(scale=4, zenith_dependent=False)
    return simulated("plain", n_wobble=4, n_off=4, norm_scatter=0, shift_scatter=0, source=False, truth=truth)


@cache
def full_store():
    """Wobble and OFF runs with all that the simulation has: source, zenith, norms, energy shifts, dead time, a gap."""
    return simulated("full", n_wobble=4, n_off=4, zenith_range=(0, 30) * u.deg)


def plain_files(folder, n=4):
    """The first runs of `plain_store`, as a store with files of its own."""
    store = plain_store()
    (folder / "data").mkdir(parents=True)
    for name in ("hdu-index.fits.gz", "obs-index.fits.gz"):
        table = Table.read(store.path / name)
        table[np.isin(table["OBS_ID"], store.on_obs_ids[:n])].write(folder / name)
    for obs_id in store.on_obs_ids[:n]:
        shutil.copy(store.path / "data" / f"simulated_{obs_id}.fits", folder / "data")
    return folder


def observations(store, obs_ids=None):
    """Freshly read observations of a store (a list)."""
    ids = [*store.on_obs_ids, *store.off_obs_ids] if obs_ids is None else obs_ids
    return list(store.data_store.get_observations(ids, required_irf=IRFS))


def source_region(store, radius=0.4):
    """Circle around the simulated source."""
    return CircleSkyRegion(store.source.spatial_model.position, radius * u.deg)


def energy_axis(edges=(0.3, 1, 3, 10)):
    return MapAxis.from_energy_edges(edges, unit="TeV")


def sky_geom(position, *, edges=(0.3, 1, 3, 10), width=5.0, binsz=0.05, frame="icrs"):
    """Square map with a reconstructed energy axis."""
    return WcsGeom.create(skydir=position, width=width, binsz=binsz, frame=frame, axes=[energy_axis(edges)])


def altered(observation, *, keep=None, obs_id=None, **parts):
    """A copy in memory of an observation, with some events, another number or other parts (gti, pointing, bkg...)."""
    events = observation.events
    if keep is not None:
        events = EventList(events.table[keep])
    given = {name: getattr(observation, name) for name in ("gti", "aeff", "edisp", "psf", "pointing", "meta")}
    given |= {"events": events, "location": observation.observatory_earth_location, "bkg": None} | parts
    return Observation(obs_id=observation.obs_id if obs_id is None else obs_id, **given)


@dataclass
class AnalyticModel(RateModel):
    """The truth of the simulation behind the interface of a fitted model; exact, with a zenith dependence."""

    truth: BackgroundTruth = WIDE_TRUTH
    is_radial: bool = False
    offset_max: float = 2.5
    half_width: float = 2.5
    zenith_range: tuple = (0.4, 1.0)
    energy_edges: np.ndarray = field(default_factory=lambda: EDGES)
    norm: float = 1.0
    shift: float = 0.0

    def rate_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return self.norm * self.truth.rate(energy[:, None], fov_lon, fov_lat, cos_zenith, shift=self.shift)

    def integral_grid(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0):
        return self.norm * self.truth.integral(energy_edges, fov_lon, fov_lat, cos_zenith, shift=self.shift)

    def relative_error_grid(self, energy, fov_lon, fov_lat, cos_zenith=1.0):
        return np.zeros((len(energy), len(fov_lon)))


def fov_bins(kind):
    return FovBins.rings(2.5, 12) if kind == "radial" else FovBins.grid(2.5, 24)


@cache
def _mean_rate(fov_edges, edges):
    fov = FovBins(tuple(np.array(e) for e in fov_edges))
    lon, lat = fov.subpoints(4)
    if fov.is_radial:  # the mean of the gradient over a ring is 1: a few angles do
        lon, lat = (
            lon.reshape(fov.size, 4, -1)[..., :: lon.shape[1] // 32],
            lat.reshape(fov.size, 4, -1)[..., :: lon.shape[1] // 32],
        )
        return WIDE_TRUTH.integral(edges, lon, lat).mean((-1, -2))
    return WIDE_TRUTH.integral(edges, lon, lat).mean(-1)


def expected_in_bins(edges, fov, seconds):
    """Counts that the truth expects at zenith in energy and field-of-view bins, shape (energy, fov.size)."""
    rate = _mean_rate(tuple(map(tuple, fov.edges)), tuple(edges))
    return rate * fov.solid_angle * seconds


def mean_in_bins(model, fov, edges, n=4, cos_zenith=np.nan):
    """Mean of a model's integral over each bin, shape (energy, fov.size)."""
    lon, lat = fov.subpoints(n)
    return model.integral_grid(edges, lon.ravel(), lat.ravel(), cos_zenith).reshape(len(edges) - 1, *lon.shape).mean(2)


@cache
def fitted(kind, *, seconds=3e5, seed=0):
    """Binned model of simulated counts in its own bins, that of the truth with its asymmetry at zenith."""
    fov = fov_bins(kind)
    expected = expected_in_bins(EDGES, fov, seconds)
    counts = np.random.default_rng(seed).poisson(expected).astype(float)
    return fit_binned(counts, np.full(fov.size, seconds), EDGES, fov)


def default_edges():
    return energy_edges_per_decade(0.1 * u.TeV, 100 * u.TeV, 10)
