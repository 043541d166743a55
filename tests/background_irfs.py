"""Background IRFs that are smooth and on no side alike."""

import numpy as np
from gammapy.irf import Background2D, Background3D
from gammapy.maps import MapAxis

ENERGY = MapAxis.from_energy_bounds("0.1 TeV", "100 TeV", 20)


def shape(energy, lon, lat):
    """A smooth, asymmetric rate in s-1 MeV-1 sr-1; deg and TeV."""
    return 1e-4 * energy**-2.7 * np.exp(-(lon**2 + lat**2) / 3 + 0.2 * lon - 0.1 * lat)


def irf_3d(scale=1.0, alignment="ALTAZ", data=None, unit="s-1 MeV-1 sr-1", **more):
    axes = [ENERGY, *(MapAxis.from_bounds(-3, 3, 30, unit="deg", name=n) for n in ("fov_lon", "fov_lat"))]
    e, lon, lat = np.meshgrid(*(a.center.value for a in axes), indexing="ij")
    data = scale * shape(e, lon, lat) if data is None else data
    return Background3D(axes=axes, data=data, unit=unit, fov_alignment=alignment, **more)


def irf_2d(scale=1.0, **more):
    axes = [ENERGY, MapAxis.from_bounds(0, 3, 15, unit="deg", name="offset")]
    e, theta = np.meshgrid(*(a.center.value for a in axes), indexing="ij")
    return Background2D(axes=axes, data=scale * shape(e, theta, 0), unit="s-1 MeV-1 sr-1", **more)
