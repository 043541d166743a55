"""Sources put into observations in memory."""

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.table import vstack
from gammapy.data import EventList
from stores import altered


def with_source(observation, position, n, *, width=0.05, seed=0):
    """A copy of an observation with the events of a source more:
    a round Gaussian (deg), energies from 0.3 TeV with index 2.5."""
    rng = np.random.default_rng(seed)
    table = observation.events.table
    more = table[rng.integers(0, len(table), n)].copy()
    offset = width * np.sqrt(-2 * np.log(rng.random(n)))
    there = SkyCoord(position.ra, position.dec).directional_offset_by(rng.uniform(0, 360, n) * u.deg, offset * u.deg)
    more["RA"], more["DEC"] = there.ra.to(table["RA"].unit), there.dec.to(table["DEC"].unit)
    more["ENERGY"] = (0.3 * rng.random(n) ** (-1 / 1.5) * u.TeV).astype(table["ENERGY"].dtype)
    both = vstack([table, more], metadata_conflicts="silent")
    both.meta = dict(table.meta)
    both = both[np.argsort(both["TIME"])]
    return altered(observation, events=EventList(both))
