"""BAccMod on all runs of H.E.S.S. DL3 DR1: time and peak memory of one model, printed as JSON.

It runs in an environment of its own, since BAccMod 0.4.1 needs astropy < 8 and pins nothing that fits ours::

    python -m venv /tmp/venv-baccmod
    /tmp/venv-baccmod/bin/python -m pip install "BAccMod==0.4.1" "astropy<8" "regions<0.12"
    OMP_NUM_THREADS=1 /tmp/venv-baccmod/bin/python tests/benchmarks/baccmod_reference.py grid \
        --data $GAMMAPY_DATA/hess-dl3-dr1 --exclusion ../shared/dr1-exclusions.reg

``--offset-bins`` counts from the centre to the edge, as BAccMod does: 12 give 12 rings, or a grid of 24 x 24.
"""

import argparse
import json
import logging
import resource
import time
import warnings
from importlib.metadata import version

import astropy.units as u
import numpy as np
from baccmod import Grid3DAcceptanceMapCreator, RadialAcceptanceMapCreator
from gammapy.data import DataStore
from gammapy.maps import MapAxis
from regions import Regions

CREATORS = {"radial": RadialAcceptanceMapCreator, "grid": Grid3DAcceptanceMapCreator}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CREATORS)
    parser.add_argument("--data", required=True, help="folder of the DL3 data store")
    parser.add_argument("--exclusion", required=True, help="region file with circles")
    parser.add_argument("--offset-bins", type=int, default=12)
    parser.add_argument("--runs", type=int, help="the first so many runs instead of all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    energy = MapAxis.from_energy_bounds("0.2 TeV", "20 TeV", nbin=24, name="energy")
    offset = MapAxis.from_bounds(0, 2.5, nbin=args.offset_bins, unit="deg", name="offset")
    # single zenith and no run-wise norm: less work than our fit, which has the norms of the runs in it
    start, cpu = time.perf_counter(), time.process_time()
    store = DataStore.from_dir(args.data)
    observations = store.get_observations(store.obs_table["OBS_ID"][: args.runs], required_irf=["aeff"])
    creator = CREATORS[args.model](energy, offset, exclude_regions=list(Regions.read(args.exclusion, format="ds9")))
    model = creator.create_acceptance_model(observations)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu

    rate = model.data.to_value("s-1 MeV-1 sr-1") if isinstance(model.data, u.Quantity) else model.data
    print(
        json.dumps(
            {
                "tool": f"BAccMod {version('baccmod')}",
                "model": args.model,
                "shape": list(rate.shape),
                "runs": len(observations),
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "finite_bins": float(np.isfinite(rate).mean()),
            }
        )
    )


if __name__ == "__main__":
    main()
