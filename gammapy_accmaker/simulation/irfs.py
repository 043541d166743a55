"""What the simulated telescopes see, and the DL3 files that they write.

From the top: `BackgroundTruth`, the analytic truth of the background; site, clock and response to gamma rays; events of
a source as this response shows them; and the files of a run and of a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.coordinates import EarthLocation, SkyCoord, angular_separation
from astropy.io import fits
from astropy.table import Table
from astropy.time import Time
from gammapy.irf import EffectiveAreaTable2D, EnergyDependentMultiGaussPSF, EnergyDispersion2D
from gammapy.maps import MapAxis
from gammapy.modeling.models import SkyModel
from scipy.special import gamma, gammainc

TEV_IN_MEV = 1e6


def energy_quadrature(edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies in TeV, weights in MeV and bin numbers of a Gauss-Legendre rule in log energy.

    Each bin is cut into panels of at most 0.2 in ln E, narrow enough for five nodes to follow the threshold.
    """
    node, weight = np.polynomial.legendre.leggauss(5)
    edges = np.log(np.asarray(edges, dtype=float))
    energy, weights, number = [], [], []
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        panels = np.linspace(low, high, int(np.ceil((high - low) / 0.2)) + 1)
        half = 0.5 * np.diff(panels)[:, None]
        energy.append(np.exp((panels[:-1, None] + half * (1 + node)).ravel()))
        weights.append((half * weight).ravel() * energy[-1] * TEV_IN_MEV)
        number.append(np.full(len(energy[-1]), k))
    return np.concatenate(energy), np.concatenate(weights), np.concatenate(number)


def offset_of(fov_lon, fov_lat) -> np.ndarray:
    """Offset in deg of positions in deg."""
    return np.rad2deg(angular_separation(0.0, 0.0, np.deg2rad(fov_lon), np.deg2rad(fov_lat)))


@dataclass(frozen=True)
class BackgroundTruth:
    """Analytic truth of the hadronic background, in the camera frame (ALTAZ), per ontime.

    A power law above a sharp threshold that grows with zenith, times a generalised Gaussian in offset whose width
    grows with energy, times ``1 + a(E) fov_lon + b(E) fov_lat``, which has mean 1 on every ring. Positions are in
    deg with gammapy's signs: FOV_LON grows with decreasing azimuth, FOV_LAT with altitude. All methods take plain
    arrays that broadcast against each other.

    Parameters
    ----------
    scale : float
        Factor on the rate; 1 gives about 6 events per s at zenith.
    asymmetric : bool
        Whether the camera has a gradient.
    zenith_dependent : bool
        If False, the rate at every zenith angle is that at zenith.
    offset_max : float
        Edge of the camera in deg: the rate is 0 beyond.
    energy_min, energy_max : float
        Range in TeV of reconstructed energies that the event selection keeps. The rate itself goes on outside.
    """

    scale: float = 1.0
    asymmetric: bool = True
    zenith_dependent: bool = True
    offset_max: float = 3.0
    energy_min: float = 0.05
    energy_max: float = 100.0

    def threshold(self, cos_zenith) -> np.ndarray:
        """Energy threshold in TeV."""
        return 0.15 * (np.asarray(cos_zenith, dtype=float) ** -2 if self.zenith_dependent else np.ones_like(cos_zenith))

    def spectrum(self, energy, cos_zenith) -> np.ndarray:
        """Rate on the axis in s-1 MeV-1 sr-1, at energies in TeV."""
        light_pool = np.asarray(cos_zenith, dtype=float) ** -2 if self.zenith_dependent else 1.0
        # Never a negative power of something tiny: far below the threshold the ratio is what is small.
        trigger = 1 / (1 + (self.threshold(cos_zenith) / energy) ** 6)
        return 1.8e-4 * self.scale * light_pool * trigger * np.asarray(energy, dtype=float) ** -2.7

    def width(self, energy) -> np.ndarray:
        """Scale of the offset profile in deg."""
        return 1.6 * np.asarray(energy, dtype=float) ** 0.08

    def profile(self, energy, offset) -> np.ndarray:
        """Rate relative to the axis, at offsets in deg."""
        return np.where(offset <= self.offset_max, np.exp(-((offset / self.width(energy)) ** 2.5)), 0.0)

    def profile_integral(self, energy) -> np.ndarray:
        """Integral of the profile in sr, in the plane tangent to the axis."""
        width = self.width(energy)
        inside = gammainc(0.8, (self.offset_max / width) ** 2.5)
        return 2 * np.pi * np.deg2rad(width) ** 2 / 2.5 * gamma(0.8) * inside

    def asymmetry(self, energy, fov_lon, fov_lat) -> np.ndarray:
        """Factor of the camera's gradient: 2 to 6 % per deg in lon, falling with energy; -1 to -6 % in lat, rising."""
        bend = 0.6 * np.tanh(np.log10(energy))
        return 1 + self.asymmetric * (0.04 * (1 - bend) * fov_lon - 0.035 * (1 + bend) * fov_lat)

    def rate(self, energy, fov_lon, fov_lat, cos_zenith=1.0, *, shift=0.0) -> np.ndarray:
        """Rate in s-1 MeV-1 sr-1 per ontime.

        Parameters
        ----------
        energy, fov_lon, fov_lat, cos_zenith : array-like
            Reconstructed energy in TeV, position in deg, cosine of the zenith angle of the pointing.
        shift : float
            Energy shift s of a run: spectrum and profile are taken at ``log E + s``, the asymmetry at ``log E``.
        """
        shifted = np.exp(shift) * np.asarray(energy, dtype=float)
        field = self.profile(shifted, offset_of(fov_lon, fov_lat)) * self.asymmetry(energy, fov_lon, fov_lat)
        return self.spectrum(shifted, cos_zenith) * field

    def integral(self, energy_edges, fov_lon, fov_lat, cos_zenith=1.0, *, shift=0.0) -> np.ndarray:
        """Rate integrated over energy bins, in s-1 sr-1, shape ``(n_bins, *shape of the positions)``."""
        positions = np.broadcast_arrays(fov_lon, fov_lat, cos_zenith)
        result = np.zeros((len(energy_edges) - 1, *positions[0].shape))
        for energy, weight, k in zip(*energy_quadrature(energy_edges), strict=True):
            result[k] += weight * self.rate(energy, *positions, shift=shift)
        return result


SITE = EarthLocation.from_geodetic(lon=16.5002 * u.deg, lat=-23.2718 * u.deg, height=1835 * u.m)
_SITE_HEADER = {"GEOLON": SITE.lon.deg, "GEOLAT": SITE.lat.deg, "ALTITUDE": SITE.height.to_value("m")}
REFERENCE_TIME = Time(59215, format="mjd", scale="tt")
_TIME_HEADER = {"MJDREFI": 59215, "MJDREFF": 0.0, "TIMEUNIT": "s", "TIMESYS": "TT", "TIMEREF": "LOCAL"}
_GADF_HEADER = {
    "HDUCLASS": "GADF",
    "HDUDOC": "https://github.com/open-gamma-ray-astro/gamma-astro-data-formats",
    "HDUVERS": "0.3",
    "ORIGIN": "gammapy_accmaker",
    "CREATOR": "gammapy_accmaker.simulation.store",
    "TELESCOP": "SIM",
    "INSTRUME": "simulated IACT",
}
_HDUS = {"events": "events", "gti": "gti", "aeff": "aeff_2d", "edisp": "edisp_2d", "psf": "psf_3gauss"}

# The tail of the point spread function: width relative to the core, height relative to the core.
_TAIL_WIDTH, _TAIL_HEIGHT = 2.5, 0.05


def _energy_resolution(energy_true):
    """Relative width of the migration at energies in TeV."""
    return 0.12 + 0.05 * (1 + energy_true / 0.3) ** -1


def _psf_core(energy_true, offset):
    """Gaussian width in deg of the core of the point spread function, at energies in TeV and offsets in deg."""
    return (0.03 + 0.025 * energy_true**-0.3) * (1 + 0.05 * offset**2)


def make_irfs(cos_zenith: float, energy_threshold: float) -> dict:
    """Full-enclosure response of one run.

    Parameters
    ----------
    cos_zenith : float
        Cosine of the run's zenith angle; the light pool, and with it the area, grows as its inverse square.
    energy_threshold : float
        Trigger threshold in TeV.

    Returns
    -------
    irfs : dict
        ``aeff``, ``edisp`` and ``psf`` as gammapy objects.
    """
    energy_axis = MapAxis.from_energy_bounds(0.02, 200, nbin=12, per_decade=True, unit="TeV", name="energy_true")
    offset_axis = MapAxis.from_edges(np.linspace(0, 3.5, 8), unit="deg", name="offset")
    migra_axis = MapAxis.from_edges(np.linspace(0.2, 1.8, 81), name="migra")
    energy, offset = energy_axis.center.to_value("TeV")[:, None], offset_axis.center.to_value("deg")

    area = 2e5 / cos_zenith**2 / (1 + (energy / energy_threshold) ** -5) * np.exp(-((offset / 2.3) ** 3))
    safe = {"LO_THRES": 1.2 * energy_threshold, "HI_THRES": 100.0}
    aeff = EffectiveAreaTable2D(axes=[energy_axis, offset_axis], data=area, unit="m2", meta=safe)

    resolution = _energy_resolution(energy_axis.center.to_value("TeV"))[:, None, None]
    edisp = EnergyDispersion2D.from_gauss(energy_axis, migra_axis, offset_axis, bias=0.0, sigma=resolution.T)

    core = _psf_core(energy, offset)
    names = EnergyDependentMultiGaussPSF.required_parameters
    values = {"sigma_1": core, "sigma_2": _TAIL_WIDTH * core, "sigma_3": core, "ampl_2": _TAIL_HEIGHT, "ampl_3": 0.0}
    density = 1 / (2 * np.pi * np.deg2rad(core) ** 2 * (1 + _TAIL_HEIGHT * _TAIL_WIDTH**2))
    data = np.zeros(core.shape, dtype=[(name, np.float32) for name in names])
    for name in names:
        data[name] = density if name == "scale" else values[name]
    units = {name: u.Unit("deg" if name.startswith("sigma") else "") for name in names} | {"scale": u.Unit("sr-1")}
    psf = EnergyDependentMultiGaussPSF(axes=[energy_axis, offset_axis], data=data, unit=units)
    return {"aeff": aeff, "edisp": edisp, "psf": psf}


def draw_source_events(
    rng: np.random.Generator,
    source: SkyModel,
    pointing: SkyCoord,
    aeff: EffectiveAreaTable2D,
    gtis: np.ndarray,
    live_fraction: float,
) -> tuple[np.ndarray, np.ndarray, SkyCoord]:
    """Events of a point source as the response of `make_irfs` shows them.

    Parameters
    ----------
    rng : `~numpy.random.Generator`
        Source of random numbers.
    source : `~gammapy.modeling.models.SkyModel`
        Point source of known spectrum.
    pointing : `~astropy.coordinates.SkyCoord`
        Pointing of the run.
    aeff : `~gammapy.irf.EffectiveAreaTable2D`
        Effective area of the run.
    gtis : `~numpy.ndarray`
        Starts and stops in s, shape (n, 2).
    live_fraction : float
        Part of that time in which events are recorded.

    Returns
    -------
    time, energy, position : `~numpy.ndarray`, `~numpy.ndarray`, `~astropy.coordinates.SkyCoord`
        Time in s, reconstructed energy in TeV and reconstructed direction, each of n events.
    """
    offset = source.position.separation(pointing).to("deg")
    grid = np.linspace(np.log(0.03), np.log(150), 2000)
    energy = np.exp(grid) * u.TeV
    rate = (source.spectral_model(energy) * aeff.evaluate(energy_true=energy, offset=offset) * energy).to_value("s-1")
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(grid))])
    length = np.diff(gtis, axis=1)[:, 0]
    n_events = rng.poisson(cumulative[-1] * live_fraction * length.sum())
    energy_true = np.exp(np.interp(rng.uniform(0, cumulative[-1], n_events), cumulative, grid))

    # Five widths fit into the migration axis of the response, so the Gaussian needs no tails beyond it.
    migra = 1 + np.clip(rng.standard_normal(n_events), -5, 5) * _energy_resolution(energy_true)
    tail_fraction = _TAIL_HEIGHT * _TAIL_WIDTH**2 / (1 + _TAIL_HEIGHT * _TAIL_WIDTH**2)
    width = _psf_core(energy_true, offset.value) * np.where(rng.random(n_events) < tail_fraction, _TAIL_WIDTH, 1.0)
    position = source.position.icrs.directional_offset_by(
        rng.uniform(0, 360, n_events) * u.deg, rng.rayleigh(width) * u.deg
    )
    elapsed = rng.uniform(0, length.sum(), n_events)
    started = np.cumsum(length) - length
    interval = np.searchsorted(started, elapsed, side="right") - 1
    return gtis[interval, 0] + elapsed - started[interval], energy_true * migra, position


def run_file(obs_id: int) -> str:
    """Path of a run's file within the store."""
    return f"data/simulated_{obs_id}.fits"


def write_run(path: Path, header: dict, gtis: np.ndarray, columns: dict, irfs: dict) -> None:
    """Write events, good time intervals and response of one run to a FITS file.

    Parameters
    ----------
    path : `~pathlib.Path`
        File to write.
    header : dict
        Keywords of this observation for the event header.
    gtis : `~numpy.ndarray`
        Starts and stops in s since the reference time, shape (n, 2).
    columns : dict
        Columns of the event list.
    irfs : dict
        Response from `make_irfs`.
    """
    more = {"OBS_MODE": "POINTING", "EV_CLASS": "std", "RADECSYS": "ICRS", "EQUINOX": 2000.0}
    more["TELAPSE"] = gtis[-1, 1] - gtis[0, 0]
    event_header = {**_GADF_HEADER, "HDUCLAS1": "EVENTS", **_TIME_HEADER, **header, **_SITE_HEADER, **more}
    gti_header = {**_GADF_HEADER, "HDUCLAS1": "GTI", **_TIME_HEADER}
    gti_header |= {key: header[key] for key in ("OBS_ID", "TSTART", "TSTOP")}
    gti_columns = {"START": gtis[:, 0] * u.s, "STOP": gtis[:, 1] * u.s}
    hdus = [
        fits.PrimaryHDU(),
        fits.BinTableHDU(Table(columns, meta=event_header), name="EVENTS"),
        fits.BinTableHDU(Table(gti_columns, meta=gti_header), name="GTI"),
    ]
    for name, irf in irfs.items():
        hdu = irf.to_table_hdu()
        hdu.name = name.upper()
        hdus.append(hdu)
    fits.HDUList(hdus).writeto(path)


def write_index(folder: Path, rows: list[dict]) -> None:
    """Write the observation index and the HDU index of a store.

    Parameters
    ----------
    folder : `~pathlib.Path`
        Folder of the store.
    rows : list of dict
        One row of the observation index for each run.
    """
    header = {**_GADF_HEADER, "HDUCLAS1": "INDEX", "HDUCLAS2": "OBS", **_TIME_HEADER, **_SITE_HEADER}
    observations = Table(rows=rows, meta=header)
    for name in observations.colnames:
        if name.startswith(("RA_", "DEC_", "GLON_", "GLAT_", "ALT_", "AZ_", "ZEN_")):
            observations[name].unit = "deg"
        elif name in ("ONTIME", "LIVETIME", "TSTART", "TSTOP"):
            observations[name].unit = "s"
    hdus = [
        (row["OBS_ID"], hdu_type, hdu_class, *run_file(row["OBS_ID"]).split("/"), hdu_type.upper())
        for row in rows
        for hdu_type, hdu_class in _HDUS.items()
    ]
    names = ["OBS_ID", "HDU_TYPE", "HDU_CLASS", "FILE_DIR", "FILE_NAME", "HDU_NAME"]
    index = Table(rows=hdus, names=names, meta={**_GADF_HEADER, "HDUCLAS1": "INDEX", "HDUCLAS2": "HDU"})
    for table, name in ((observations, "OBS_INDEX"), (index, "HDU_INDEX")):
        filename = folder / f"{name.lower().replace('_', '-').replace('index', 'index.fits.gz')}"
        fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name=name)]).writeto(filename)
