"""Cubes of a fit in the camera frame, as gammapy maps: counts, exposure, measured and fitted rate.

Longitude and latitude of the maps are FOV_LON and FOV_LAT, which a plate carree projection around (0, 0) keeps as they
are; their frame reads "icrs", since gammapy knows no name for a camera.
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from gammapy.maps import Map, MapAxis, WcsGeom
from scipy.ndimage import gaussian_filter

from gammapy_accmaker.camera.bins import TEV_IN_MEV, offset
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.fit_counts import FitCounts
from gammapy_accmaker.products.irf import RATE_UNIT

_PIXELS = 50  # along each side, where the fit has no equal square bins
_RATE_BINS_PER_DECADE = 10
_SUBPIXELS = 3  # along each side, over which the fitted rate is averaged
_MAX_SMOOTHING = 0.25  # of the width of the field of view


def make_cubes(
    model: RateModel, fit_counts: FitCounts | None, cos_zenith: float | None, smooth_counts: float | None
) -> dict[str, Map]:
    """Cubes of a fit by name; see `AcceptanceModel.cubes`."""
    if smooth_counts is not None and not smooth_counts > 0:
        raise InputError(f"smooth_counts: got {smooth_counts}, but a number of counts > 0 is needed")
    geom = _geom(model, fit_counts)
    cubes, fitted = {}, _fitted(model, geom, cos_zenith)
    if fit_counts is not None:
        counts, exposure = _on_pixels(fit_counts, geom)
        cubes["counts"] = Map.from_geom(geom, data=counts, unit="")
        cubes["exposure"] = Map.from_geom(geom, data=np.broadcast_to(exposure, counts.shape).copy(), unit="s")
        measured = _measured(counts, exposure, fitted, geom, smooth_counts)
        cubes["measured_rate"] = Map.from_geom(geom, data=measured, unit=RATE_UNIT)
    cubes["rate"] = Map.from_geom(geom, data=fitted, unit=RATE_UNIT)
    return cubes


def _geom(model, fit_counts):
    if fit_counts is None:
        low, high = model.energy_edges[[0, -1]]
        nbin = max(int(round(np.log10(high / low) * _RATE_BINS_PER_DECADE)), 1)
        energy, width, npix = np.geomspace(low, high, nbin + 1), 2 * model.half_width, _PIXELS
    else:
        energy, edges = fit_counts.energy_edges, fit_counts.fov.edges
        width, npix = 2 * max(np.abs(e).max() for e in edges), _PIXELS
        steps = np.concatenate([np.diff(e) for e in edges])
        symmetric = all(np.isclose(e[0], -e[-1]) and np.isclose(e[-1], width / 2) for e in edges)
        if not fit_counts.fov.is_radial and symmetric and np.allclose(steps, steps[0]):
            npix = len(edges[0]) - 1
    axis = MapAxis.from_energy_edges(energy, unit="TeV", name="energy")
    return WcsGeom.create(skydir=(0, 0), npix=npix, binsz=width / npix, proj="CAR", frame="icrs", axes=[axis])


def _positions(geom):
    """FOV_LON and FOV_LAT of the pixels in deg, shape of the image."""
    coord = geom.to_image().get_coord()
    return (coord.lon.to_value("deg") + 180) % 360 - 180, coord.lat.to_value("deg")


def _on_pixels(fit_counts, geom):
    """Counts and exposure on pixels; those of a bin are shared by the pixels in it, by their solid angle."""
    lon, lat = _positions(geom)
    index = fit_counts.fov.index(lon.ravel(), lat.ravel())
    solid_angle = geom.to_image().solid_angle().to_value("sr").ravel()
    inside = index >= 0
    in_bin = np.bincount(index[inside], solid_angle[inside], fit_counts.fov.size)
    share = np.zeros(len(index))
    share[inside] = (solid_angle / in_bin[index])[inside]
    counts = fit_counts.counts[:, index] * share
    exposure = np.where(inside, fit_counts.exposure[index], 0.0)
    return counts.reshape(geom.data_shape), exposure.reshape(lon.shape)


def _measured(counts, exposure, fitted, geom, smooth_counts):
    """Counts over what was exposed, NaN where nothing was.

    Smoothed are counts and expected counts, whose ratio is flat where the rate is steep.
    """
    solid_angle = geom.to_image().solid_angle().to_value("sr")
    width = np.diff(geom.axes["energy"].edges.to_value("MeV"))
    seen = exposure > 0
    out = np.full(counts.shape, np.nan)
    for k, image in enumerate(counts):
        volume = exposure * solid_angle * width[k]
        if smooth_counts is None or image.sum() == 0:
            np.divide(image, volume, out=out[k], where=volume > 0)
            continue
        # 4 pi sigma^2: pixels that a Gaussian averages over
        sigma = min(np.sqrt(smooth_counts / (4 * np.pi * image.sum() / seen.sum())), _MAX_SMOOTHING * len(image))
        image, expected = (gaussian_filter(x, sigma, mode="constant") for x in (image, fitted[k] * volume))
        np.divide(image, expected, out=out[k], where=expected > 1e-6 * expected.max())
        out[k] *= fitted[k]
    return out


def _fitted(model, geom, cos_zenith):
    lon, lat = _positions(geom)
    step = (np.arange(_SUBPIXELS) + 0.5) / _SUBPIXELS - 0.5
    dlon, dlat = np.meshgrid(step * abs(lon[0, 1] - lon[0, 0]), step * abs(lat[1, 0] - lat[0, 0]))
    x, y = (a[..., None] + d.ravel() for a, d in ((lon, dlon), (lat, dlat)))
    edges = geom.axes["energy"].edges.to_value("TeV")
    z = model.middle_cos_zenith if cos_zenith is None else cos_zenith
    integral = model.integral_grid(edges, x.ravel(), y.ravel(), z).reshape(len(edges) - 1, *x.shape)
    integral = np.where(offset(x, y) < model.offset_max, integral, 0.0).mean(-1)
    return integral / (np.diff(edges) * TEV_IN_MEV)[:, None, None]


def cubes_to_hdulist(cubes: dict[str, Map], alignment: str):
    """FITS images with their energy tables, one after the other; the rate comes first, so that viewers show it."""
    hdulist, *others = (
        cubes[name].to_hdulist(hdu=name.upper(), hdu_bands=f"{name.upper()}_BANDS", format="gadf")
        for name in sorted(cubes, key=lambda n: n != "rate")
    )
    for hdus in others:
        hdulist.extend(hdus[1:])
    for hdu in hdulist[1:]:
        hdu.header["FOVALIGN"] = (alignment.upper(), "axes of the camera: FOV_LON, FOV_LAT")
    for hdu in hdulist:
        if hdu.is_image and "UNIT" in hdu.header:
            hdu.header["BUNIT"] = u.Unit(hdu.header["UNIT"]).to_string("fits")
    return hdulist
