"""How far models are from a known truth, at equal data: a table, no test.

    python tests/benchmarks/divergence.py [--runs 5 20 100] [--no-zenith]

The divergence of a prediction mu from the truth m is twice the Poisson log-likelihood that it costs on average, 2
sum(mu - m + m log(m / mu)) over energy bins and camera pixels, here for 10 runs that no fit has seen, adapted to by
their own events.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

from gammapy_accmaker import AcceptanceBackgroundMaker
from gammapy_accmaker.camera.bins import FovBins
from gammapy_accmaker.data.counts import observation_track
from gammapy_accmaker.simulation.store import BackgroundTruth, simulate_data_store
from gammapy_accmaker.validation.stacks import expected_in_camera

N_TEST = 10
ENERGY = {"min": "0.15 TeV", "max": "30 TeV"}
CONFIGS = {
    f"{model}, {zenith}": {
        "model": {"type": model},
        "run_effects": {"type": "norm"},
        "zenith": {"type": zenith},
        "energy": ENERGY,
    }
    for model in ("radial", "grid")
    for zenith in ("none", "binned", "interpolated")
} | {"spline": {"energy": ENERGY}}
EDGES, FOV = np.geomspace(0.2, 20, 13), FovBins.grid(2.4, 24)
INSIDE = np.hypot(FOV.fov_lon, FOV.fov_lat) < 2.3


def divergence(maker, observation, truth):
    mu = expected_in_camera(maker.adapt(observation), observation_track(observation, "altaz"), EDGES, FOV)[:, INSIDE]
    m = truth.reshape(len(EDGES) - 1, -1)[:, INSIDE]
    return 2 * (mu - m + m * np.log(m / mu)).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[5, 20, 100])
    parser.add_argument("--no-zenith", action="store_true", help="a truth that does not depend on zenith angle")
    arguments = parser.parse_args()
    numbers, truth = arguments.runs, BackgroundTruth(zenith_dependent=not arguments.no_zenith)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        store = simulate_data_store(
            Path(folder) / "dl3", n_wobble=0, n_off=max(numbers) + N_TEST, source=False, gap=False, truth=truth
        )
        observations = store.data_store.get_observations(required_irf=[])
        test = observations[-N_TEST:]
        truths = [store.expected_counts(o.obs_id, EDGES, *FOV.edges) for o in test]
        for n in numbers:
            found = {}
            for name, config in CONFIGS.items():
                maker = AcceptanceBackgroundMaker(config).fit(observations[:n])
                found[name] = np.mean([divergence(maker, o, t) for o, t in zip(test, truths, strict=True)])
            ratio = min(value for name, value in found.items() if name != "spline") / found["spline"]
            print(n, "runs:", ", ".join(f"{k} {v:.1f}" for k, v in found.items()), f"ratio {ratio:.1f}", flush=True)


if __name__ == "__main__":
    main()
