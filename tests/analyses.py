"""Analyses of the wobble runs of a simulated store, by options and by hand, and options that are wrong."""

import numpy as np
import yaml
from astropy.coordinates import SkyCoord
from gammapy.data import DataStore
from gammapy.datasets import MapDataset, SpectrumDataset
from gammapy.makers import DatasetsMaker, MapDatasetMaker, SafeMaskMaker, SpectrumDatasetMaker
from gammapy.maps import Map, MapAxis, RegionGeom, WcsGeom
from numpy.testing import assert_allclose
from regions import CircleSkyRegion
from stores import IRFS

from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
)

FAST = {"model": {"type": "radial"}, "run_effects": {"type": "norm"}, "zenith": {"type": "none"}}
ENERGY = {"min": "0.5 TeV", "max": "10 TeV", "nbins": 3}
TRUE = {"min": "0.3 TeV", "max": "20 TeV", "nbins": 4}


def source_position(store):
    return store.source.spatial_model.position.icrs


def nested(store, *, parameters=FAST, kind="3d", stack=True, nbins=3, background=None, n_runs=2, true=TRUE, **more):
    """Options of an analysis of the wobble runs of a simulated store."""
    position = source_position(store)
    skydir = {"frame": "icrs", "lon": f"{position.ra.deg} deg", "lat": f"{position.dec.deg} deg"}
    return {
        "general": {"log": {"level": "warning"}},
        "observations": {"datastore": str(store.path), "obs_ids": list(store.on_obs_ids[:n_runs])},
        "datasets": {
            "type": kind,
            "stack": stack,
            "geom": {
                "wcs": {
                    "skydir": skydir,
                    "binsize": "0.1 deg",
                    "width": {"width": "3 deg", "height": "3 deg"},
                    "binsize_irf": "0.5 deg",
                },
                "axes": {"energy": {**ENERGY, "nbins": nbins}, "energy_true": true},
            },
            "on_region": {**skydir, "radius": "0.2 deg"},
            "safe_mask": {"methods": ["offset-max"], "parameters": {"offset_max": "2 deg"}},
            "background": {"method": "acceptance", "parameters": parameters, **(background or {})},
        },
        **more,
    }


def analysed(options):
    analysis = AcceptanceAnalysis(AcceptanceAnalysisConfig.from_yaml(yaml.safe_dump(options)))
    analysis.get_observations()
    analysis.get_datasets()
    return analysis


def made_by_makers(config, parameters=FAST, exclusion=None, off_ids=None):
    """The same by hand: a list of makers and gammapy's loop over observations."""
    data_store = DataStore.from_dir(config.observations.datastore)
    observations = data_store.get_observations(config.observations.obs_ids, required_irf=IRFS)
    off = None if off_ids is None else data_store.get_observations(off_ids, required_irf=IRFS)
    maker = AcceptanceBackgroundMaker(parameters, exclusion=exclusion).fit(observations, off)
    datasets, axes = config.datasets, config.datasets.geom.axes
    energy, energy_true = (
        MapAxis.from_energy_bounds(a.min, a.max, a.nbins, name=name)
        for a, name in ((axes.energy, "energy"), (axes.energy_true, "energy_true"))
    )
    if datasets.type == "3d":
        wcs = datasets.geom.wcs
        center = SkyCoord(wcs.skydir.lon, wcs.skydir.lat, frame="icrs")
        width = (wcs.width.width.deg, wcs.width.height.deg)
        geom = WcsGeom.create(skydir=center, binsz=wcs.binsize.deg, width=width, frame="icrs", axes=[energy])
        binsz_irf = wcs.binsize_irf.deg
        reference = MapDataset.create(geom, energy_axis_true=energy_true, binsz_irf=binsz_irf, name="stacked")
        first = MapDatasetMaker(selection=["counts", "exposure", "psf", "edisp"])
    else:
        on = datasets.on_region
        region = CircleSkyRegion(SkyCoord(on.lon, on.lat, frame="icrs"), on.radius)
        geom = RegionGeom.create(region, axes=[energy])
        reference = SpectrumDataset.create(geom, energy_axis_true=energy_true, name="stacked")
        first = SpectrumDatasetMaker(selection=["counts", "exposure", "edisp"], containment_correction=True)
    safe = SafeMaskMaker(methods=datasets.safe_mask.methods, **datasets.safe_mask.parameters)
    chain = DatasetsMaker(
        [first, safe, maker],
        stack_datasets=datasets.stack,
        cutout_mode="trim",
        cutout_width=2 * datasets.geom.selection.offset_max,
        n_jobs=1,
    )
    return chain.run(reference, observations)


def assert_same_datasets(datasets, others, rtol=1e-12):
    assert len(datasets) == len(others) > 0
    for one, other in zip(datasets, others, strict=True):
        for name in ("counts", "background", "exposure", "mask_safe", "psf", "edisp"):
            a, b = getattr(one, name), getattr(other, name)
            assert (a is None) == (b is None), name
            if a is not None:
                a, b = (
                    x.data if isinstance(x, Map) else x.psf_map.data if name == "psf" else x.edisp_map.data
                    for x in (a, b)
                )
                assert_allclose(a, b, rtol=rtol, atol=0, err_msg=name)
        assert np.asarray(one.counts.data).sum() > 0
        assert np.all(one.background.data[one.mask_safe.data] > 0)


def dump(config):
    options = yaml.safe_load(config.to_yaml())
    del options["metadata"]  # the time is in there
    return options


def background(**options):
    return {"datasets": {"type": "3d", "background": {"method": "acceptance", **options}}}


def parameters(**options):
    return background(parameters=options)


PARAMETERS = "datasets.background.parameters"
OFF = "datasets.background.off_observations"
WRONG = {
    "misspelt section": ({"dataset": {}}, "dataset: unknown key; did you mean 'datasets'"),
    "misspelt key": (background(paramters={}), "datasets.background.paramters: unknown.*did you mean 'parameters'"),
    "misspelt option": (parameters(offset_maximum="2 deg"), f"{PARAMETERS}.offset_maximum: unknown.*'offset_max'"),
    "misspelt option of a model": (
        parameters(model={"type": "radial", "bins": 3}),
        f"{PARAMETERS}.model.bins: unknown.*offset_bins",
    ),
    "misspelt key of OFF runs": (background(off_observations={"obs_id": [1]}), f"{OFF}.obs_id: unknown.*'obs_ids'"),
    "unknown method": (background() | {"datasets": {"background": {"method": "spline"}}}, "method: .*'acceptance'"),
    "unknown model": (parameters(model={"type": "cubic"}), f"{PARAMETERS}.model: .*one of the types.* radial"),
    "unit of an option": (parameters(offset_max="2 TeV"), f"{PARAMETERS}.offset_max: got 2.0 TeV.*'deg'"),
    "unit of an angle": ({"datasets": {"geom": {"wcs": {"binsize": "2 TeV"}}}}, "wcs.binsize: .*2 TeV.*'0.5 deg'"),
    "no unit": ({"datasets": {"geom": {"wcs": {"binsize": 2}}}, "fit": {}},
        "datasets.geom.wcs.binsize: got 2; an angle"),
    "unit of an energy": ({"fit": {"fit_range": {"min": "1 deg"}}}, "fit.fit_range.min: .*deg.*'1 TeV'"),
    "no quantity": ({"fit": {"fit_range": {"min": "low"}}, "general": {"n_jobs": 2}},
        "fit_range.min: got 'low'.*'1 TeV'"),
    "no mapping": ({"fit": None}, "fit: got None"),
    "no model file": (background(model="there-is-none.fits"), "datasets.background.model: there is no there-is-none"),
    "no exclusion": (background(exclusion="none.reg"), "datasets.background.exclusion: there is no none.reg"),
    "no exclusion of the options": (parameters(exclusion={"mask": "none.fits"}),
        f"{PARAMETERS}.*there is no file none"),
    "no data store": (background() | {"observations": {"datastore": "none"}},
        "observations.datastore: there is no none"),
    "no list of runs": (background() | {"observations": {"obs_file": "none"}},
        "observations.obs_file: there is no none"),
    "no OFF data store": (background(off_observations={"datastore": "none"}), f"{OFF}.datastore: there is no none"),
    "OFF runs without runs": (background(off_observations={"obs_ids": []}), f"{OFF}: it selects no runs.*give obs_ids"),
    "two OFF selections": (background(off_observations={"obs_ids": [1], "obs_file": "a"}), f"{OFF}: got both"),
    "OFF runs of a ring": (
        {"datasets": {"background": {"method": "ring", "off_observations": {"obs_ids": [1]}}}},
        f"{OFF}: it needs `method: acceptance`",
    ),
    "model of a ring": ({"datasets": {"background": {"method": "ring", "model": "a"}}}, "model: it needs `method: acc"),
    "ring with energy bins": (
        parameters(renormalization={"type": "ring"}),
        f"{PARAMETERS}.renormalization.type: 'ring' needs one energy bin.*nbins: 5.*use `nbins: 1`",
    ),
    "renormalization of spectra": (
        {"datasets": {"type": "1d", **parameters(renormalization={"type": "fov"})["datasets"]} | {"type": "1d"}},
        f"{PARAMETERS}.renormalization.type: 'fov' needs maps.*`type: none`",
    ),
    "matching without OFF runs": (parameters(matching={}), f"{PARAMETERS}.matching: it needs OFF runs; name them"),
    "parametric without function": (parameters(model={"type": "parametric"}),
        f"{PARAMETERS}.model: function.*needs one"),
    "run effects of a binned model": (
        parameters(model={"type": "radial"}, run_effects={"type": "tilt"}),
        f"{PARAMETERS}.*run_effects: 'tilt' needs the model type 'spline'",
    ),
    "peak of no background": (
        {"datasets": {**background()["datasets"], "safe_mask": {"methods": ["bkg-peak"]}}},
        "datasets.safe_mask.methods: 'bkg-peak' needs.*use another",
    ),
}  # fmt: skip
