"""How much of a known source the background eats, on H.E.S.S. DL3 DR1: the figures of `sources`.

    python tests/benchmarks/known_sources.py                    # all cases, some 20 minutes of one core
    python tests/benchmarks/known_sources.py rx msh --kind radial
    python tests/benchmarks/known_sources.py disc1.0 --runs 15
    python tests/benchmarks/known_sources.py disc1.0 point --seeds 5    # the scatter of these figures
    python tests/benchmarks/known_sources.py disc1.0 point --expected    # and their bias, without any scatter

Share eaten = (b - b_excluded) / (n - b_excluded), summed over the region of the source and all energies above 0.3 TeV,
of the runs that point within 1.3 deg of it; b_excluded: the same fit with the source excluded, or for what is injected
that of the runs before. A source is injected into runs without any as Poisson counts of its own model in each run, at
a flux that makes it so bright, over the background in its disc.
"""

import argparse
import logging
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path

import astropy.units as u
import numpy as np
from gammapy.data import DataStore
from gammapy.datasets import MapDataset
from gammapy.makers import MapDatasetMaker, SafeMaskMaker
from gammapy.maps import Map, MapAxis, WcsGeom
from gammapy.modeling import Fit
from gammapy.modeling.models import (
    DiskSpatialModel,
    ExpCutoffPowerLawSpectralModel,
    GaussianSpatialModel,
    PointSpatialModel,
    PowerLawSpectralModel,
    ShellSpatialModel,
    SkyModel,
)
from regions import CircleSkyRegion
from scipy.sparse import csr_array

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceConfig
from gammapy_accmaker.acceptance.fit import fit_runs
from gammapy_accmaker.acceptance.reduction import Reduction
from gammapy_accmaker.acceptance.source_fit import fit_amplitudes
from gammapy_accmaker.data.exclusion import Exclusion
from gammapy_accmaker.data.source_counts import SourceOnSky
from gammapy_accmaker.data.sources import SourceList
from gammapy_accmaker.models.source_terms import sum_patches

EXCLUSION = Path(os.environ.get("ACCMAKER_EXCLUSION", Path(__file__).parents[3] / "shared" / "dr1-exclusions.reg"))
LOWEST = 0.3  # TeV
NEAR = 1.3  # deg
WOBBLE = 0.7  # deg
CRAB_FLUX = 3.45e-11  # cm-2 s-1 TeV-1 at 1 TeV


def store():
    return DataStore.from_dir(Path(os.environ["GAMMAPY_DATA"]) / "hess-dl3-dr1")


def runs_of(target):
    table = store().obs_table
    return store().get_observations(table["OBS_ID"][table["TARGET_NAME"] == target], required_irf=["aeff"])


# ---- Sources of the data release ----


def shell():
    """A shell fitted in gammapy to the 15 runs, with the source excluded from the background."""
    spectrum = ExpCutoffPowerLawSpectralModel(index=2.06, amplitude="2.1e-11 cm-2 s-1 TeV-1", lambda_="0.077 TeV-1")
    shape = ShellSpatialModel(
        lon_0="258.369 deg", lat_0="-39.772 deg", radius="0.333 deg", width="0.223 deg", frame="icrs"
    )
    return SkyModel(spectrum, shape, name="RX J1713.7-3946")


def ellipse():
    """A Gaussian fitted in gammapy to the 20 runs, with the source excluded from the background."""
    spectrum = PowerLawSpectralModel(index=2.27, amplitude="6.5e-12 cm-2 s-1 TeV-1")
    shape = GaussianSpatialModel(
        lon_0="228.529 deg", lat_0="-59.158 deg", sigma="0.108 deg", e=0.77, phi="-37 deg", frame="icrs"
    )
    return SkyModel(spectrum, shape, name="MSH 15-52")


REAL = {
    "rx": ("RX J1713.7-3946", shell, 0.75),
    "msh": ("MSH 15-52", ellipse, 0.40),
    "crab": (
        "Crab",
        lambda: SkyModel(
            PowerLawSpectralModel(index=2.6, amplitude="3.5e-11 cm-2 s-1 TeV-1"),
            PointSpatialModel(lon_0="83.633 deg", lat_0="22.014 deg", frame="icrs"),
            name="Crab",
        ),
        0.25,
    ),
}


def sums(maker, observations, region, lowest):
    """Counts and background in a region above the lowest energy, over runs that point near it."""
    axis = MapAxis.from_energy_bounds(lowest * u.TeV, 100 * u.TeV, nbin=12, name="energy")
    radius = region.radius.to_value("deg")
    geom = WcsGeom.create(skydir=region.center, width=2 * radius + 0.2, binsz=0.05, axes=[axis], frame="icrs")
    inside, total = geom.to_image().region_mask([region]).data, np.zeros(2)
    for observation in observations:
        pointing = observation.get_pointing_icrs(observation.tmid)
        if pointing.separation(region.center).deg > NEAR:
            continue
        events, counts = observation.events, Map.from_geom(geom)
        seen = events.radec.separation(pointing).deg < maker.config.offset_max.deg
        counts.fill_by_coord({"skycoord": events.radec[seen], "energy": events.energy[seen]})
        background = maker.make_background(geom, observation)
        total += [(one.data * inside).sum() for one in (counts, background)]
    return total


def real_case(name, config, lowest):
    target, make, radius = REAL[name]
    observations, source = runs_of(target), make()
    region = CircleSkyRegion(source.spatial_model.position, radius * u.deg)
    # other sources of the field are excluded in all three
    others = [item for item in _regions() if item.center.separation(region.center) > radius * u.deg]
    found, makers = {}, {}
    for what, given in (
        ("excluded", {"exclusion": [*others, region]}),
        ("nothing told", {"exclusion": others}),
        ("known", {"exclusion": others, "sources": source}),
    ):
        start = time.time()
        maker = AcceptanceBackgroundMaker(config, **given).fit(observations, n_jobs=1, cache=os.environ.get("CACHE"))
        seconds = time.time() - start
        n, b = sums(maker, observations, region, lowest)
        found[what], makers[what] = (b, seconds), maker
    b0 = found["excluded"][0]
    print(f"{name}: {len(observations)} runs, n {n:.0f}, b {b0:.1f}, excess over b {(n - b0) / b0:.3f}")
    for what in ("nothing told", "known"):
        b, seconds = found[what]
        print(f"  {what:13s} share eaten {100 * (b - b0) / (n - b0):6.2f} %   fit {seconds:.0f} s")
    _print_table(maker.model.source_table)
    first, second = fluxes([makers[what] for what in ("excluded", "known")], observations, source, region)
    print(f"  flux beside the known source over flux beside the excluded one {second / first:.4f}", flush=True)


def fluxes(makers, observations, source, region):
    """Amplitude of the source in a 3D fit with the background of each maker, all else of it as given."""
    energy = MapAxis.from_energy_bounds("0.5 TeV", "40 TeV", nbin=6, name="energy")
    true = MapAxis.from_energy_bounds("0.2 TeV", "80 TeV", nbin=20, name="energy_true")
    width = 2 * region.radius.to_value("deg") + 0.8
    geom = WcsGeom.create(skydir=region.center, width=width, binsz=0.04, axes=[energy], frame="icrs")
    stacks = [MapDataset.create(geom, energy_axis_true=true, name=f"stack {k}") for k in range(len(makers))]
    for observation in observations:
        if observation.get_pointing_icrs(observation.tmid).separation(region.center).deg > NEAR:
            continue
        empty = MapDataset.create(geom, energy_axis_true=true, name=str(observation.obs_id))
        dataset = MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"]).run(empty, observation)
        dataset = SafeMaskMaker(methods=["offset-max"], offset_max=2.3 * u.deg).run(dataset, observation)
        for stack, maker in zip(stacks, makers, strict=True):
            stack.stack(maker.run(dataset, observation))
    found = []
    for stack in stacks:
        model = source.copy(name="source")
        for parameter in model.parameters:
            parameter.frozen = parameter.name != "amplitude"
        stack.models = [model]
        Fit().run([stack])
        found.append(model.spectral_model.amplitude.value)
    return found


def _regions():
    from regions import Regions

    return list(Regions.read(EXCLUSION))


def _print_table(table):
    for row in table:
        print(
            f"  {row['E_MIN']:.2f} to {row['E_MAX']:.2f} TeV: amplitude {row['AMPLITUDE']:.3f} +- "
            f"{row['AMPLITUDE_ERR']:.3f}, information left {row['INFORMATION']:.3f} {row['FLAG']}",
            flush=True,
        )


# ---- Sources injected into runs on empty fields ----

INJECTED = {  # shape, radius of the region in deg, source over background in it (or flux over the Crab's), wobbles
    "disc0.5": (lambda at: DiskSpatialModel(r_0="0.5 deg", **at), 0.5, 0.17, True),
    "disc1.0": (lambda at: DiskSpatialModel(r_0="1.0 deg", **at), 1.0, 0.12, True),
    "ellipse": (lambda at: GaussianSpatialModel(sigma="0.108 deg", e=0.77, phi="-37 deg", **at), 0.4, 0.17, True),
    "point": (lambda at: PointSpatialModel(**at), 0.2, None, True),
    "axis": (lambda at: DiskSpatialModel(r_0="0.5 deg", **at), 0.5, 0.17, False),
    "halo": (lambda at: GaussianSpatialModel(sigma="1.5 deg", **at), 1.5, 0.03, True),
}


def injected_case(name, config, n_runs, seeds, expected):
    """Each seed has Poisson counts and places of the source in the camera of its own; the background is the same.

    ``expected``: counts are what is expected of background and source, which leaves the bias alone.
    """
    make, radius, ratio, wobbles = INJECTED[name]
    observations = runs_of("Off data")[:n_runs]
    config = AcceptanceConfig.coerce(config)
    base = Reduction.of(config, [EXCLUSION])
    bins = base.bins
    shares_eaten: dict[str, list[float]] = {}
    clean = [base.reduce(observation) for observation in observations]
    start = time.time()
    of_clean, _ = fit_runs(clean, bins, config)
    print(f"{name}: {len(clean)} runs, fit without any source {time.time() - start:.0f} s")
    if expected:
        clean = [
            run.with_counts({id(part): csr_array(own) for part, own in zip(run.slices, in_bins, strict=True)})
            for run, in_bins in zip(clean, _backgrounds(of_clean, clean, base), strict=True)
        ]
        of_clean, _ = fit_runs(clean, bins, config)
    for seed in range(seeds):
        turn = 90 * seed / seeds
        draw = (lambda mean: mean) if expected else np.random.default_rng(seed).poisson
        found = _one_seed(
            make, radius, ratio, WOBBLE if wobbles else 0.0, turn, draw, observations, clean, of_clean, base
        )
        for what, value in found.items():
            shares_eaten.setdefault(what, []).append(value)
    for what, values in shares_eaten.items():
        error = np.std(values, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        print(f"  {what:34s} share eaten {np.mean(values):6.2f} +- {error:.2f} %, of {np.round(values, 2)}", flush=True)


def _backgrounds(model, runs, reduction):
    """Expected counts in the bins, by run and slice."""
    bins, settings = reduction.bins, reduction.config.run_effects.settings
    adapted = [model.adapt(run, bins, settings).model for run in runs]
    return [
        [one.expected_counts([part], bins.energy_edges, bins.fov) for part in run.slices]
        for one, run in zip(adapted, runs, strict=True)
    ]


def _one_seed(make, radius, ratio, offset, turn, draw, observations, clean, of_clean, base):
    config, bins = base.config, base.bins
    settings, above = config.run_effects.settings, bins.energy_edges[:-1] >= LOWEST * 0.999
    with_unit, in_region = [], []
    for k, observation in enumerate(observations):
        pointing = observation.get_pointing_icrs(observation.tmid)
        # each run has the source at a place of its own, which is one of four wobble positions
        there = pointing.directional_offset_by((90 * k + turn) * u.deg, offset * u.deg)
        at = {"lon_0": there.ra, "lat_0": there.dec, "frame": "icrs"}
        spectrum = PowerLawSpectralModel(index=2.3, amplitude=0.05 * CRAB_FLUX / u.Unit("cm2 s TeV"))
        own = replace(base, sources=SourceList.of(SkyModel(spectrum, make(at), name="source")))
        with_unit.append(own.reduce(observation))
        in_region.append(_shares(with_unit[-1], own.track(observation), there, radius, bins))

    def summed(values):
        """Sum over the region of arrays, by run and slice."""
        pairs = [zip(of_run, shares, strict=True) for of_run, shares in zip(values, in_region, strict=True)]
        return sum((array[above] * share).sum() for pair in pairs for array, share in pair)

    unit = [[sum_patches(part.sources).toarray() for part in run.slices] for run in with_unit]
    b0 = summed(_backgrounds(of_clean, clean, base))
    factor = 1.0 if ratio is None else ratio * b0 / summed(unit)
    more = [[draw(factor * values) for values in of_run] for of_run in unit]
    known = []
    for run, other, of_run in zip(with_unit, clean, more, strict=True):
        counts = [part.counts + csr_array(own) for part, own in zip(other.slices, of_run, strict=True)]
        known.append(run.with_counts({id(part): own for part, own in zip(run.slices, counts, strict=True)}))
    unknown = [replace(run, slices=tuple(replace(part, sources=()) for part in run.slices)) for run in known]
    added, eaten = summed(more), {}

    def note(what, model, runs):
        eaten[what] = 100 * (summed(_backgrounds(model, runs, base)) - b0) / added
        print(f"    {what}: {eaten[what]:.2f} %", flush=True)

    print(f"  at {turn:.0f} deg: injected {added:.0f} over {b0:.0f} of background in the region ({added / b0:.3f})")
    model, found = fit_runs(known, bins, config)
    note("known", model, [run.with_amplitudes(found) for run in known])
    _print_amplitudes(found, factor)
    beside = fit_amplitudes(known, bins, of_clean, config.sources.bands, settings)
    note("model of OFF runs, amplitudes fitted", of_clean, [run.with_amplitudes(beside) for run in known])
    _print_amplitudes(beside, factor)
    true = replace(found, values=np.full(len(found.values), factor))
    note("model of OFF runs, flux given", of_clean, [run.with_amplitudes(true) for run in known])
    note("model of OFF runs, nothing told", of_clean, unknown)
    if turn == 0:  # it depends on the seed by far less than it is
        note("nothing told", fit_runs(unknown, bins, config)[0], unknown)
    return eaten


def _print_amplitudes(found, factor):
    for value, error, share in zip(found.values, found.errors, found.share, strict=True):
        print(f"    amplitude over truth {value / factor:.3f} +- {error / factor:.3f}, information left {share:.3f}")


def _shares(run, track, center, radius, bins):
    """Share of the time and area of each bin that a circle on the sky has, by slice."""
    geom = WcsGeom.create(skydir=center, width=2 * radius + 0.1, binsz=0.02, proj="TAN", frame="icrs")
    sky = geom.get_coord().skycoord.flatten()
    inside = sky.separation(center).deg < radius
    sky, area = sky[inside], geom.solid_angle().to_value("sr").ravel()[inside]
    xyz = sky.cartesian.xyz.value.T
    edges = track.slice_edges(0.05)
    parts = [track.during(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    parts = [part for part in parts if part.ontime > 0]
    out = []
    for part, own in zip(parts, run.slices, strict=True):
        one = SourceOnSky(xyz, area[None]).in_camera(part, 1.0, own.exposure > 0, bins, Exclusion(), 60.0)
        out.append(np.minimum(one.toarray()[0] / bins.fov.solid_angle, 1.0))
    return out


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[*REAL, *INJECTED], choices=[*REAL, *INJECTED, []])
    parser.add_argument("--kind", default="spline")
    parser.add_argument("--effects", default=None)
    parser.add_argument("--runs", type=int, default=45)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lowest", type=float, default=LOWEST, help="of what a source of DR1 is summed over, TeV")
    parser.add_argument("--expected", action="store_true")
    given = parser.parse_args()
    options = {"model": {"type": given.kind}}
    if given.effects:
        options["run_effects"] = {"type": given.effects}
    for case in given.cases:
        if case in REAL:
            real_case(case, options, given.lowest)
        else:
            injected_case(case, options, given.runs, given.seeds, given.expected)
