"""Runs simulated on arrays from a known acceptance, for the tests of the spline model."""

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from gammapy_accmaker.utils.run_key import RunKey

PIXEL = 0.2  # deg
EDGES = 10 ** np.arange(np.log10(0.2), 1.0001, 0.02)
_x = (np.arange(22) - 10.5) * PIXEL
_lon, _lat = (a.ravel() for a in np.meshgrid(_x, _x, indexing="ij"))
_inside = np.hypot(_lon, _lat) < 2.1
LON, LAT = _lon[_inside], _lat[_inside]
SOLID_ANGLE = np.full(len(LON), np.radians(PIXEL) ** 2)
CENTERS = np.sqrt(EDGES[1:] * EDGES[:-1])


@dataclass(frozen=True)
class SimulatedRun:
    obs_id: int
    counts: csr_array
    exposure: np.ndarray
    cos_zenith: float
    azimuth: float
    covariates: dict = field(default_factory=dict)
    norm: float = 0.0  # log
    shift: float = 0.0
    displacement: None = None  # all cells are seen whole
    sources: tuple = ()
    signal: None = None

    @property
    def cos_zenith_range(self):
        return self.cos_zenith, self.cos_zenith

    @property
    def mjd(self):
        return 59000.0 + self.obs_id

    @property
    def key(self):
        return RunKey(self.obs_id, self.mjd, (83.6, 22.0))


def true_rate(energy, lon, lat, cos_zenith, norm=0.0, shift=0.0):
    """s-1 MeV-1 sr-1 at energies (n,) TeV and positions (m,) deg."""
    log_energy = np.log(energy)[:, None] + shift
    threshold = np.log(0.35) - 2.3 * np.log(cos_zenith)
    width = 0.9 + 0.12 * log_energy
    shape = -2.7 * log_energy - np.logaddexp(0, -(log_energy - threshold) / 0.07)
    profile = -(lon**2 + lat**2) / (2 * width**2) + 0.04 * lat - 0.02 * lon
    return 5e-4 * np.exp(shape + profile + norm)


def simulate_runs(
    n_run, seed, *, ontime=1700.0, sd_norm=0.12, sd_shift=0.08, zenith=(0.65, 1.0), obs_id=0, rate=true_rate
):
    rng = np.random.default_rng(seed)
    runs = []
    for i in range(n_run):
        cos_zenith, azimuth = rng.uniform(*zenith), rng.uniform(0, 360)
        norm, shift = sd_norm * rng.normal(), sd_shift * rng.normal()
        hole = np.hypot(LON - rng.uniform(-1, 1), LAT - rng.uniform(-1, 1)) < 0.4
        exposure = np.where(hole, 0.0, ontime)
        mu = rate(CENTERS, LON, LAT, cos_zenith, norm, shift) * exposure * SOLID_ANGLE * np.diff(EDGES)[:, None] * 1e6
        counts = csr_array(rng.poisson(mu).astype(float))
        runs.append(SimulatedRun(obs_id + i, counts, exposure, cos_zenith, azimuth, {}, norm, shift))
    return runs
