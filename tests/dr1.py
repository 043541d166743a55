"""What tests on H.E.S.S. DL3 DR1 have in common: the sources in its fields."""

import astropy.units as u
from astropy.coordinates import SkyCoord
from regions import CircleSkyRegion

SOURCES = {  # position and radius in deg
    "Crab": (83.633, 22.014, 0.25), "MSH 15-52": (228.53, -59.16, 0.40), "RX J1713": (258.39, -39.76, 0.75),
    "PKS 2155": (329.717, -30.226, 0.25), "SN 1006": (225.70, -41.90, 0.40), "Cen A": (201.365, -43.02, 0.20),
    "PKS 0548": (88.30, -32.27, 0.20), "NGC 253": (11.89, -25.29, 0.20), "HESS J1718-385": (259.53, -38.55, 0.25),
    "J1708-410": (257.05, -41.09, 0.25), "J1713-381": (258.10, -38.20, 0.30), "J1718-374": (259.20, -37.50, 0.30),
    "3C 273": (187.28, 2.05, 0.15), "N 157B": (84.40, -69.17, 0.20), "SN 1987A": (83.90, -69.20, 0.20),
    "J1702-420": (255.00, -42.00, 0.25),
}  # fmt: skip


def exclusion():
    return [CircleSkyRegion(SkyCoord(ra, dec, unit="deg"), r * u.deg) for ra, dec, r in SOURCES.values()]
