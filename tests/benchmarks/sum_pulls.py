"""Pulls of sums of the predicted background on events that were not used, on the 105 runs of H.E.S.S. DL3 DR1; a table.

Runs of a fold are predicted by the model of the others. It is adapted to a random half of a run's events (with half of
the exposure), and the other half is counted in the field, rings and discs, in six bands of energy: run by run, and
stacked over the fold.

GAMMAPY_DATA=... python tests/benchmarks/sum_pulls.py exclusions.reg [--config radial ...] [--folds 2] [--store folder]

Width: root of the mean square of (counts - expected) / sqrt(expected + variance of the modes) where at least 15 counts
are expected, and its error if the errors are right: sums that share directions or pixels are correlated, and count as
fewer. ``store``: folder in which reduced runs and fitted models are kept for the next time.
"""

import argparse
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from gammapy.data import DataStore
from scipy.linalg import block_diag

from gammapy_accmaker.acceptance.fit import fit_runs
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.utils.parallel import Execution
from gammapy_accmaker.validation.cross_validation import _split

ENERGY = {"energy": {"min": "0.15 TeV", "max": "25 TeV"}}
CONFIGS = {
    "shift": ENERGY,
    "tilt": ENERGY | {"run_effects": {"type": "tilt"}},
    "norm": ENERGY | {"run_effects": {"type": "norm"}},
    "radial": ENERGY | {"model": {"type": "radial"}, "run_effects": {"type": "norm"}},
    "grid": ENERGY | {"model": {"type": "grid"}, "run_effects": {"type": "norm"}},
}
BANDS = np.array([0.2, 0.32, 0.56, 1.0, 1.78, 3.16, 10.0])  # TeV
RINGS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.4)  # deg
MIN_EXPECTED = 15


def sums_over_field(lon, lat):
    """Weights of pixels, by kind of sum, shape (sum, pixel)."""
    offset = np.hypot(lon, lat)
    rings = [(offset >= low) & (offset < high) for low, high in zip(RINGS[:-1], RINGS[1:], strict=True)]
    discs = {}
    for radius in (0.5, 1.0):
        steps = np.arange(-2.0, 2.01, 1.0)
        at = [(x, y) for x in steps for y in steps if np.hypot(x, y) < 2.3 - radius]
        discs[f"disc {radius} deg"] = [np.hypot(lon - x, lat - y) < radius for x, y in at]
    return {k: np.array(v, dtype=float) for k, v in {"field": [offset < 2.3], "rings": rings, **discs}.items()}


def changes_of_sums(adapted, run, edges, fov, inside, kinds):
    """Expected counts of a run in bands and sums, their changes along the directions of rate and run, and what sums of
    a band have in common."""
    bands = (np.searchsorted(BANDS, np.sqrt(edges[1:] * edges[:-1])) - 1 == np.arange(len(BANDS) - 1)[:, None]) * 1.0
    lon, lat = fov.fov_lon[inside], fov.fov_lat[inside]
    out = {kind: [0.0, 0.0, 0.0, 0.0] for kind in kinds}
    middle = np.sqrt(edges[1:] * edges[:-1])
    for part in run.slices:
        here = adapted.at_azimuth(part.azimuth)
        mu = here.integral_grid(edges, lon, lat, part.cos_zenith) * (part.exposure * fov.solid_angle)[inside]
        factor = adapted.error_factor(part.cos_zenith, part.azimuth)
        for band in range(len(bands)):
            here_bins = bands[band] > 0
            shared, own = here.error_rows(middle[here_bins], lon, lat, part.cos_zenith)
            shared, own = (rows.reshape(len(rows), -1).T for rows in (shared, own))
            for kind, weights in kinds.items():
                weighted = (weights[:, None, :] * mu[here_bins]).reshape(len(weights), -1)
                common = weights * mu[here_bins].sum(0) @ weights.T
                found = weighted.sum(1), weighted @ shared @ factor, weighted @ own, common
                for k in range(4):
                    if band == 0:
                        out[kind][k] = out[kind][k] + np.zeros((len(bands), *found[k].shape))
                    out[kind][k][band] += found[k]
    return out


def counts_of_sums(run, edges, inside, kinds):
    bands = (np.searchsorted(BANDS, np.sqrt(edges[1:] * edges[:-1])) - 1 == np.arange(len(BANDS) - 1)[:, None]) * 1.0
    counts = bands @ sum(part.counts.toarray() for part in run.slices)[:, inside]
    return {kind: counts @ weights.T for kind, weights in kinds.items()}


def halved(run):
    return replace(run, slices=tuple(replace(part, exposure=0.5 * part.exposure) for part in run.slices))


def stored(path, make):
    if path is not None and path.exists():
        return pickle.loads(path.read_bytes())
    made = make()
    if path is not None:
        path.write_bytes(pickle.dumps(made))
    return made


def reduced_runs(reduction, observations):
    rng = np.random.default_rng(3)
    halves = [_split(observation, rng) for observation in observations]
    sets = (observations, [first for first, _ in halves], [second for _, second in halves])
    return [{run.place: run for run in reduction.reduce_all(runs, Execution.of(1, None))[0]} for runs in sets]


def pulls_of_fold(model, fold, first, second, reduction):
    """Pulls, and expected counts, by kind of sum: run by run and stacked."""
    bins, config = reduction.bins, reduction.config
    fov, inside, edges = bins.fov, bins.inside, bins.energy_edges
    kinds = sums_over_field(fov.fov_lon[inside], fov.fov_lat[inside])
    found = {kind: [] for kind in kinds}
    for k in fold:
        adapted = model.adapt(halved(first[k]), bins, config.run_effects.settings).model
        counts = counts_of_sums(second[k], edges, inside, kinds)
        changes = changes_of_sums(adapted, halved(second[k]), edges, fov, inside, kinds)
        for kind in kinds:
            found[kind].append((counts[kind], *changes[kind]))
    out = {}
    for kind, runs in found.items():
        n, mu, shared = (np.array([run[k] for run in runs]) for k in (0, 1, 2))
        own = np.array([covariance_of_run(run[3], run[4]) for run in runs])
        shared = shared.reshape(len(runs), own.shape[1], -1)
        together = np.tensordot(shared, shared, axes=(2, 2))
        for k in range(len(runs)):
            together[k, :, k] += own[k]
        sums = {"run": (n, mu, together), "stacked": (n.sum(0), mu.sum(0), together.sum((0, 2)))}
        for of, (counts, expected, covariance) in sums.items():
            covariance = covariance.reshape(expected.size, -1)
            sd = np.sqrt(np.diag(covariance))
            out[kind, of] = (
                (counts - expected) / sd.reshape(expected.shape),
                expected,
                covariance / np.outer(sd, sd),
            )
    return out


def covariance_of_run(own, common):
    """Of the sums of a run in all bands, without that of the rate, from changes (band, sum, k) and what they share."""
    flat = own.reshape(-1, own.shape[2])
    return flat @ flat.T + block_diag(*common)


def width_of(pulls, used):
    """Root of the mean square of the pulls that are used in each fold, and its error."""
    squares, correlation = 0.0, 0.0
    n = sum(own.sum() for own in used)
    for (values, _, matrix), own in zip(pulls, used, strict=True):
        squares += (values[own] ** 2).sum()
        correlation += (matrix[np.ix_(own.ravel(), own.ravel())] ** 2).sum()
    return (np.sqrt(squares / n), np.sqrt(correlation / 2) / n) if n > 1 else (np.nan, np.nan)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exclusions", help="region file of the sources in the fields")
    parser.add_argument("--config", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--folds", type=int, default=5, help="of five")
    parser.add_argument("--permutations", type=int, default=1, help="of the runs, each divided into folds")
    parser.add_argument("--store", type=Path, help="folder for reduced runs and fitted models")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    observations = list(DataStore.from_dir("$GAMMAPY_DATA/hess-dl3-dr1").get_observations(required_irf=[]))
    n = arguments.permutations
    folds = {
        (seed, number): fold
        for seed in range(n)
        for number, fold in enumerate(np.array_split(np.random.default_rng(seed).permutation(len(observations)), 5))
        if number < arguments.folds
    }
    print(f"{'configuration':14s} {'sum':14s} {'of':8s} {'all':>13s}  " + "  ".join(f"{e:13.2f}" for e in BANDS[:-1]))
    for name in arguments.config:
        reduction = Reduction.of(AcceptanceConfig.coerce(CONFIGS[name]), arguments.exclusions)

        def path(what, name=name):
            return None if arguments.store is None else arguments.store / f"{what}-{name}.pkl"

        whole, first, second = stored(path("runs"), lambda r=reduction: reduced_runs(r, observations))
        pulls = []
        for (seed, number), fold in folds.items():
            fold = [k for k in fold if k in whole]
            rest = [whole[k] for k in sorted(set(whole) - set(fold))]
            model = stored(
                path(f"fold{seed}-{number}"), lambda rest=rest, r=reduction: fit_runs(rest, r.bins, r.config)[0]
            )
            pulls.append(pulls_of_fold(model, fold, first, second, reduction))
        for kind, of in pulls[0]:
            own = [found[kind, of] for found in pulls]
            used = [expected > MIN_EXPECTED for _, expected, _ in own]
            widths = [width_of(own, used)]
            for band in range(len(BANDS) - 1):
                here = np.arange(len(BANDS) - 1)[:, None] == band
                widths.append(width_of(own, [one & here for one in used]))
            # the events are the same in all permutations: together they are no more than those of one
            text = "  ".join(f"{width:5.2f} +- {error * np.sqrt(n):4.2f}" for width, error in widths)
            print(f"{name:14s} {kind:14s} {of:8s} {text}", flush=True)


if __name__ == "__main__":
    main()
