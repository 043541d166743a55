"""What an excess that a search has found looks like: image, spectrum and significance, as a gammapy model.

It is a picture of what was left out of a fit, and no measurement: counts over the acceptance, divided by the effective
area at their reconstructed energy. Neither the point spread nor the energy dispersion is taken out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from gammapy.maps import WcsGeom, WcsNDMap
from gammapy.modeling.models import SkyModel, TemplateSpatialModel, TemplateSpectralModel
from scipy.ndimage import gaussian_filter

from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.sky_counts import SKY_PIXEL
from gammapy_accmaker.products.excess import ExcessField, excess_regions

_SMOOTHING = 0.1  # deg, Gaussian
_FLUX_UNIT = "TeV-1 cm-2 s-1"


@dataclass(frozen=True)
class FoundSource:
    """A source that was found.

    Attributes
    ----------
    name : str
        From its position.
    ra, dec : float
        In deg; the mean of its circles.
    header : str
        Of the image: a FITS header.
    image : `~numpy.ndarray`, shape (ny, nx)
        Smoothed excess counts, >= 0; 0 outside of its circles.
    energy_edges : `~numpy.ndarray`, shape (n + 1,)
        In TeV.
    excess, background : `~numpy.ndarray`, shape (n,)
        Counts within its circles over the acceptance, and the acceptance.
    flux, flux_error : `~numpy.ndarray`, shape (n,)
        In TeV-1 cm-2 s-1; NaN without an effective area.
    significance : float
        Of its highest peak, when it was found.
    """

    name: str
    ra: float
    dec: float
    header: str
    image: np.ndarray
    energy_edges: np.ndarray
    excess: np.ndarray
    background: np.ndarray
    flux: np.ndarray
    flux_error: np.ndarray
    significance: float

    @property
    def spatial_model(self) -> TemplateSpatialModel:
        """The image, normalised."""
        header = fits.Header.fromstring(self.header)
        geom = WcsGeom(WCS(header), npix=self.image.shape[::-1])
        image = WcsNDMap(geom, self.image, unit="sr-1")
        return TemplateSpatialModel(image, filename=f"{self.name.replace(' ', '_')}.fits")

    @property
    def spectral_model(self) -> TemplateSpectralModel | None:
        """The fluxes, joined by power laws; None where they are known of less than two bands."""
        center = np.sqrt(self.energy_edges[1:] * self.energy_edges[:-1])
        known = np.isfinite(self.flux) & (self.flux > 0)
        if known.sum() < 2:
            return None
        return TemplateSpectralModel(center[known] * u.TeV, self.flux[known] * u.Unit(_FLUX_UNIT))

    def to_model(self) -> SkyModel | None:
        """Image times spectrum; None without a spectrum."""
        spectrum = self.spectral_model
        if spectrum is None or not self.image.any():
            return None
        return SkyModel(spectral_model=spectrum, spatial_model=self.spatial_model, name=self.name)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Serial form."""
        texts = {name: getattr(self, name) for name in ("name", "ra", "dec", "header", "significance")}
        values = np.stack([self.excess, self.background, self.flux, self.flux_error])
        text = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)
        return {"text": text, "image": self.image, "energy_edges": self.energy_edges, "values": values}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> FoundSource:
        """The inverse of `to_arrays`."""
        texts = json.loads(arrays["text"].tobytes())
        excess, background, flux, flux_error = arrays["values"]
        return cls(
            **texts,
            image=arrays["image"],
            energy_edges=arrays["energy_edges"],
            excess=excess,
            background=background,
            flux=flux,
            flux_error=flux_error,
        )


def group_circles(found: Table) -> list[np.ndarray]:
    """Rows of a table of circles that belong together, since they overlap; the most significant group first."""
    centers = SkyCoord(found["RA"], found["DEC"], unit="deg")
    radius, group = np.asarray(found["RADIUS"]), np.arange(len(found))
    for k in range(len(found)):
        touching = centers[k].separation(centers).deg < radius + radius[k]
        group[np.isin(group, group[touching])] = group[touching].min()
    groups = [np.flatnonzero(group == g) for g in np.unique(group)]
    return sorted(groups, key=lambda rows: -np.max(found["SIGNIFICANCE"][rows]))


def measure_sources(
    found: Table,
    fields: Sequence[ExcessField],
    energy_edges: np.ndarray,
    exposure: Callable[[int, SkyCoord, np.ndarray], np.ndarray],
) -> list[FoundSource]:
    """Image and spectrum of what was found, each in the field in which most of its excess is seen.

    Parameters
    ----------
    found : `~astropy.table.Table`
        Circles, see `~gammapy_accmaker.products.excess.find_excess`.
    fields : sequence of `ExcessField`
        Not scaled, in the bands of the energy edges.
    energy_edges : `~numpy.ndarray`, shape (n + 1,)
        In TeV.
    exposure : callable
        Of a run by its place, a position, and energies in TeV: its livetime times its effective area in cm2 s; 0 where
        the position is outside of its field of view, NaN without an effective area.
    """
    sources = []
    for rows in group_circles(found):
        circles = found[rows]
        within = Exclusion(excess_regions(circles))
        inside = [within.contains(f.xyz).reshape(f.covered.shape) & f.covered for f in fields]
        seen = [field.counts[:, here].sum() for field, here in zip(fields, inside, strict=True)]
        field, here = fields[int(np.argmax(seen))], inside[int(np.argmax(seen))]
        if max(seen) == 0:
            continue
        counts, background = (a[:, here].sum(1) for a in (field.counts, field.expected))
        image = (field.counts - field.expected).sum(0)
        center = SkyCoord(circles["RA"], circles["DEC"], unit="deg").cartesian
        xyz = np.average(center.xyz.value, axis=1, weights=np.asarray(circles["RADIUS"]) ** 2)
        position = SkyCoord(*xyz, representation_type="cartesian", frame="icrs")
        position = SkyCoord(position.spherical.lon, position.spherical.lat, frame="icrs")
        energy = np.sqrt(energy_edges[1:] * energy_edges[:-1])
        total = sum(exposure(place, position, energy) for place in field.places)
        width = np.diff(energy_edges)
        with np.errstate(divide="ignore", invalid="ignore"):
            flux, error = ((a / (total * width)) for a in (counts - background, np.sqrt(np.maximum(counts, 1))))
        flux, error = (np.where(total > 0, a, np.nan) for a in (flux, error))
        header, cut = _cut_out(field.geom, image, here)
        name = f"J{position.to_string('hmsdms', sep='', precision=0, pad=True).replace(' ', '')}"
        peak = float(np.max(circles["SIGNIFICANCE"]))
        at = float(position.ra.deg), float(position.dec.deg)
        spectrum = energy_edges, counts - background, background, flux, error
        sources.append(FoundSource(name, *at, header, cut, *spectrum, peak))
    return sources


def _cut_out(geom, image, here):
    """Header and pixels of the smallest part of an image that holds the circles."""
    smooth = np.where(here, np.maximum(gaussian_filter(image, _SMOOTHING / SKY_PIXEL), 0), 0)
    y, x = (slice(np.flatnonzero(here.any(k)).min(), np.flatnonzero(here.any(k)).max() + 1) for k in (1, 0))
    header = geom.wcs[y, x].to_header()
    return header.tostring(), smooth[y, x]
