"""Held-out score and significance on the 105 runs of H.E.S.S. DL3 DR1; a table, no test.

GAMMAPY_DATA=... python tests/benchmarks/heldout.py exclusions.reg [--terms]
"""

import argparse
import warnings

import astropy.units as u
from gammapy.data import GTI, DataStore, Observation

from gammapy_accmaker import cross_validate

REFERENCE = -7_175_462  # BAccMod c5c6535, radial, zenith interpolated linearly, free norm, the same halves
# DR1 rounds the good time down to whole seconds: the reference counts the 320 events (0.03 %) of the second after it
ROUNDED = 1 * u.s
COMMON = {"energy": {"min": "0.15 TeV", "max": "25 TeV"}}
DEFAULT = {"spline, shift, gradient (default)": COMMON}
TERMS = {
    "radial, norm": {"model": {"type": "radial"}, "run_effects": {"type": "norm"}, **COMMON},
    "grid, norm": {"model": {"type": "grid"}, "run_effects": {"type": "norm"}, **COMMON},
    "spline, no zenith, norm": {"zenith": {"type": "none"}, "run_effects": {"type": "norm"}, **COMMON},
    "spline, norm": {"run_effects": {"type": "norm"}, **COMMON},
    "spline, tilt": {"run_effects": {"type": "tilt"}, **COMMON},
    "spline, shift, no gradient": {"run_effects": {"type": "shift", "gradient": False}, **COMMON},
    "default without covariates": {"model": {"type": "spline", "covariates": []}, **COMMON},
    **DEFAULT,
}


def with_rounded_seconds(observation):
    """The run with good time that ends and begins a second later and earlier."""
    gti = observation.gti
    start, stop = ((t - gti.time_ref).to("s") for t in (gti.time_start - ROUNDED, gti.time_stop + ROUNDED))
    wider = GTI.create(start, stop, reference_time=gti.time_ref).union()
    parts = {name: getattr(observation, name) for name in ("events", "pointing", "meta")}
    return Observation(observation.obs_id, gti=wider, location=observation.observatory_earth_location, **parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exclusions", help="region file of the sources in the fields")
    parser.add_argument("--terms", action="store_true", help="what each term of the model adds")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    observations = DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations(required_irf=[])
    observations = [with_rounded_seconds(observation) for observation in observations]
    configs = TERMS if arguments.terms else DEFAULT
    result = cross_validate(observations, configs, exclusion=arguments.exclusions, sky=True)
    result.table["GAIN"] = result.table["SCORE"] - REFERENCE
    for table in (result.table, result.significance):
        for name in table.colnames:
            if table[name].dtype.kind == "f":
                table[name].format = ".0f" if name in ("SCORE", "GAIN", "GAIN_ERR") else ".3f"
        table.pprint(max_lines=-1, max_width=-1)


if __name__ == "__main__":
    main()
