"""Ready shapes of parametric models, as astropy models of energy in TeV or of FOV_LON and FOV_LAT in deg.

Each has an ``amplitude`` in s-1 MeV-1 sr-1; in a product the amplitude of the first factor scales and those of the
others are fixed at 1. A centre, a reference or a scale is fixed unless it is freed.
"""

from __future__ import annotations

import numpy as np
from astropy.modeling import Fittable1DModel, Fittable2DModel, Parameter

from gammapy_accmaker.camera.bins import offset


class PowerLaw(Fittable1DModel):
    """``amplitude (energy / reference)^-index``; the reference in TeV is fixed."""

    amplitude = Parameter(default=1e-4, min=0)
    index = Parameter(default=2.7, bounds=(-5, 10))
    reference = Parameter(default=1, fixed=True)

    @staticmethod
    def evaluate(energy, amplitude, index, reference):
        return amplitude * (energy / reference) ** -index

    @staticmethod
    def fit_deriv(energy, amplitude, index, reference):
        power = (energy / reference) ** -index
        return [power, -amplitude * power * np.log(energy / reference), amplitude * power * index / reference]


class PowerLawCutoffs(Fittable1DModel):
    """A power law with a trigger threshold below and an exponential cut-off above.

    ``amplitude (energy / reference)^-index exp(-lambda_high energy) / (1 + (low_cutoff / energy)^steepness)``: the rate
    at ``low_cutoff`` (TeV) is half of the power law's; ``lambda_high`` (1 / TeV) is one over the energy of the upper
    cut-off, 0 for none.
    """

    amplitude = Parameter(default=1e-4, min=0)
    index = Parameter(default=2.7, bounds=(-5, 10))
    low_cutoff = Parameter(default=0.15, bounds=(1e-3, 10))
    steepness = Parameter(default=4, bounds=(0.5, 30))
    lambda_high = Parameter(default=0.01, bounds=(0, 10))
    reference = Parameter(default=1, fixed=True)

    @staticmethod
    def evaluate(energy, amplitude, index, low_cutoff, steepness, lambda_high, reference):
        threshold = 1 / (1 + (low_cutoff / energy) ** steepness)
        return amplitude * (energy / reference) ** -index * np.exp(-lambda_high * energy) * threshold

    @staticmethod
    def fit_deriv(energy, amplitude, index, low_cutoff, steepness, lambda_high, reference):
        ratio = (low_cutoff / energy) ** steepness
        shape = (energy / reference) ** -index * np.exp(-lambda_high * energy) / (1 + ratio)
        lost = ratio / (1 + ratio)
        by_log = [
            -np.log(energy / reference),
            -steepness / low_cutoff * lost,
            -np.log(low_cutoff / energy) * lost,
            -energy,
            index / reference + 0 * energy,
        ]
        return [shape] + [amplitude * shape * slope for slope in by_log]


class Gaussian(Fittable2DModel):
    """``amplitude exp(-((lon - lon_0)^2 + (lat - lat_0)^2) / (2 sigma^2))`` in the tangent plane;
    the centre is fixed."""

    amplitude = Parameter(default=1e-4, min=0)
    sigma = Parameter(default=1, bounds=(0.05, 50))
    lon_0 = Parameter(default=0, fixed=True, bounds=(-5, 5))
    lat_0 = Parameter(default=0, fixed=True, bounds=(-5, 5))

    @staticmethod
    def evaluate(lon, lat, amplitude, sigma, lon_0, lat_0):
        return amplitude * np.exp(-0.5 * ((lon - lon_0) ** 2 + (lat - lat_0) ** 2) / sigma**2)

    @staticmethod
    def fit_deriv(lon, lat, amplitude, sigma, lon_0, lat_0):
        x, y = lon - lon_0, lat - lat_0
        shape = np.exp(-0.5 * (x**2 + y**2) / sigma**2)
        rate = amplitude * shape
        return [shape, rate * (x**2 + y**2) / sigma**3, rate * x / sigma**2, rate * y / sigma**2]


class GaussianGradient(Fittable2DModel):
    """A centred Gaussian times the bilinear ``1 + gradient_lon lon + gradient_lat lat + twist lon lat``.

    Gradients are per deg; the rate is 0 where this is negative.
    """

    amplitude = Parameter(default=1e-4, min=0)
    sigma = Parameter(default=1, bounds=(0.05, 50))
    gradient_lon = Parameter(default=0, bounds=(-0.5, 0.5))
    gradient_lat = Parameter(default=0, bounds=(-0.5, 0.5))
    twist = Parameter(default=0, bounds=(-0.3, 0.3))

    @staticmethod
    def evaluate(lon, lat, amplitude, sigma, gradient_lon, gradient_lat, twist):
        plane = np.maximum(1 + gradient_lon * lon + gradient_lat * lat + twist * lon * lat, 0)
        return amplitude * np.exp(-0.5 * (lon**2 + lat**2) / sigma**2) * plane

    @staticmethod
    def fit_deriv(lon, lat, amplitude, sigma, gradient_lon, gradient_lat, twist):
        shape = np.exp(-0.5 * (lon**2 + lat**2) / sigma**2)
        plane = 1 + gradient_lon * lon + gradient_lat * lat + twist * lon * lat
        plane, slope = np.maximum(plane, 0), amplitude * shape * (plane > 0)
        by_sigma = amplitude * shape * plane * (lon**2 + lat**2) / sigma**3
        return [shape * plane, by_sigma, slope * lon, slope * lat, slope * lon * lat]


class RadialProfile(Fittable2DModel):
    """``amplitude exp(a_2 t^2 + a_4 t^4 + a_6 t^6)``, t the offset over ``scale`` (deg, fixed):
    even, so smooth at the centre."""

    amplitude = Parameter(default=1e-4, min=0)
    a_2 = Parameter(default=-1, bounds=(-50, 50))
    a_4 = Parameter(default=0, bounds=(-50, 50))
    a_6 = Parameter(default=0, bounds=(-50, 50))
    scale = Parameter(default=2, fixed=True)

    @staticmethod
    def evaluate(lon, lat, amplitude, a_2, a_4, a_6, scale):
        t = (offset(lon, lat) / scale) ** 2
        return amplitude * np.exp(a_2 * t + a_4 * t**2 + a_6 * t**3)

    @staticmethod
    def fit_deriv(lon, lat, amplitude, a_2, a_4, a_6, scale):
        t = (offset(lon, lat) / scale) ** 2
        shape = np.exp(a_2 * t + a_4 * t**2 + a_6 * t**3)
        rate = amplitude * shape
        by_scale = -2 / scale * rate * (a_2 * t + 2 * a_4 * t**2 + 3 * a_6 * t**3)
        return [shape, rate * t, rate * t**2, rate * t**3, by_scale]


READY_SHAPES = {
    "gaussian": Gaussian,
    "gaussian_gradient": GaussianGradient,
    "radial_profile": RadialProfile,
    "power_law": PowerLaw,
    "power_law_cutoffs": PowerLawCutoffs,
}
