"""How much of a source that nobody excluded the acceptance eats, when it is looked for in the data.

    python tests/benchmarks/found_sources.py [case ...]

The share is (b - b0) / (n - b0), above 0.3 TeV within the source's region; b0 is the background of the same fit with
this region excluded. Cases: rxj1713, msh1552, disc0.5, disc1.0 (44 OFF runs, four wobbles), disc0.5-15
and disc1.0-15 (the first 15 of them), on-axis, empty.
"""

import logging
import sys
import time
import warnings

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore
from regions import CircleSkyRegion
from repointed import TARGET, off_runs, repointed, with_disc, wobbled

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.products.background import icrs_vectors
from gammapy_accmaker.products.excess import excess_fields

KNOWN = {"rxj1713": (258.39, -39.76, 0.65), "msh1552": (228.53, -59.16, 0.4)}
NEAR = 1.3  # deg


def make_case(store, name):
    """Observations, and the circle of the source."""
    if name in KNOWN:
        ra, dec, radius = KNOWN[name]
        center = SkyCoord(ra, dec, unit="deg")
        table = store.obs_table
        pointing = SkyCoord(table["RA_PNT"], table["DEC_PNT"], unit="deg")
        ids = table["OBS_ID"][pointing.separation(center).deg < NEAR]
        observations = list(store.get_observations(ids, required_irf=["aeff", "edisp", "psf"], skip_missing=True))
        return observations, CircleSkyRegion(center, radius * u.deg)
    kind, _, n = name.partition("-")
    runs = off_runs(store)[: int(n) if n.isdigit() else None]
    if kind == "empty":
        return runs, None
    if kind == "on":
        runs, kind = [repointed(o, TARGET) for o in runs], "disc0.5"
    else:
        runs = wobbled(runs)
    radius = float(kind.removeprefix("disc"))
    ratio, rng = {0.5: 0.17, 1.0: 0.12}[radius], np.random.default_rng(1)
    return [with_disc(o, radius, ratio, rng) for o in runs], CircleSkyRegion(TARGET, radius * u.deg)


def in_region(observations, maker, region, kind):
    """Counts and background above 0.3 TeV."""
    config = AcceptanceConfig.coerce({"model": {"type": kind}})
    reduction = Reduction.of(config, maker.exclusion)
    runs, _ = reduction.reduce_all(observations)
    edges = reduction.bins.energy_edges
    settings = config.run_effects.settings
    adapted = [maker.model.rate_model.adapt(run, reduction.bins, settings).model for run in runs]
    n = b = 0.0
    low = edges[np.abs(np.log(edges / 10**-0.5)).argmin()]
    for field in excess_fields(runs, adapted, np.array([low, edges[-1]]), edges, config.offset_max.deg):
        center = region.center.cartesian.xyz.value
        near = (icrs_vectors(field.geom) @ center > np.cos(region.radius.to_value("rad"))).reshape(field.covered.shape)
        n, b = n + field.counts[:, near].sum(), b + field.expected[:, near].sum()
    return n, b


def main(names, kind="spline"):
    store = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1")
    for name in names:
        observations, region = make_case(store, name)
        start = time.perf_counter()
        options = {"model": {"type": kind}, "exclusion": {"iterative": {}}}
        blind = AcceptanceBackgroundMaker(options).fit(observations)
        seconds, found = time.perf_counter() - start, blind.model.found
        print(f"{name} ({kind}): {len(observations)} runs, {len(found)} circles in {seconds:.0f} s")
        for row in found:
            print("   RA {RA:.2f} Dec {DEC:+.2f} radius {RADIUS:.2f} deg, {SIGNIFICANCE:.1f} sigma".format(**row))
        if region is None:
            continue
        known = AcceptanceBackgroundMaker({"model": {"type": kind}}, exclusion=region).fit(observations)
        plain = AcceptanceBackgroundMaker({"model": {"type": kind}}).fit(observations)
        n, known_b = in_region(observations, known, region, kind)
        for what, maker in (("nothing told", plain), ("searched", blind)):
            b = in_region(observations, maker, region, kind)[1]
            share = 100 * (b - known_b) / (n - known_b)
            print(f"   {what}: n {n:.0f}, b {b:.0f}, with the source excluded {known_b:.0f}: {share:.1f} % eaten")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    main(sys.argv[1:] or ["rxj1713", "msh1552", "disc0.5", "disc1.0", "empty"])
