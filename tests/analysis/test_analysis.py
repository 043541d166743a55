"""The acceptance in gammapy's config-driven analysis: the same datasets, and errors before data are read."""

from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
import yaml
from analyses import (
    ENERGY,
    FAST,
    OFF,
    TRUE,
    WRONG,
    analysed,
    assert_same_datasets,
    background,
    dump,
    made_by_makers,
    nested,
    source_position,
)
from gammapy.analysis import Analysis, AnalysisConfig
from gammapy.analysis.config import CONFIG_PATH, BackgroundConfig, DatasetsConfig, ObservationsConfig
from gammapy.data import DataStore
from gammapy.datasets import SpectrumDataset
from gammapy.maps import MapAxis, RegionGeom, WcsGeom
from gammapy.modeling.models import Models, SkyModel
from numpy.testing import assert_allclose
from regions import Regions
from stores import IRFS, source_region

import gammapy_accmaker.analysis.workflow
from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceWorkflow,
)
from gammapy_accmaker.analysis import config as analysis_config
from gammapy_accmaker.errors import AcceptanceError, InputError


def text(*args, **kwargs):
    return yaml.safe_dump(nested(*args, **kwargs))


@pytest.fixture(scope="module")
def region_file(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("exclusion") / "source.reg"
    Regions([source_region(store)]).write(path, format="ds9")
    return path


# -- the same datasets


@pytest.mark.parametrize("stack", [True, False])
def test_analysis_and_makers_give_the_same_datasets(store, region_file, stack):
    analysis = analysed(nested(store, stack=stack, background={"exclusion": str(region_file)}))
    assert len(analysis.datasets) == (1 if stack else 2)
    by_hand = made_by_makers(analysis.config, exclusion=region_file)
    assert_same_datasets(analysis.datasets, by_hand)


def test_off_runs(store):
    off = {"obs_ids": list(store.off_obs_ids)}
    analysis = analysed(nested(store, stack=False, background={"off_observations": off}))
    assert [int(o.obs_id) for o in analysis.off_observations] == list(store.off_obs_ids)
    table = analysis.acceptance_maker.run_table
    assert set(table["OBS_ID"][table["ROLE"] == "fit"]) == set(store.off_obs_ids)
    assert set(table["OBS_ID"][table["ROLE"] == "apply"]) == set(store.on_obs_ids[:2])
    assert_same_datasets(analysis.datasets, made_by_makers(analysis.config, off_ids=store.off_obs_ids))
    # the store of the OFF runs may be named as well, and their selection may be a cone
    position = analysis.off_observations[0].get_pointing_icrs(analysis.off_observations[0].tmid)
    cone = {"frame": "icrs", "lon": f"{position.ra.deg} deg", "lat": f"{position.dec.deg} deg", "radius": "1 deg"}
    by_cone = {"datastore": str(store.path), "obs_cone": cone}
    analysis = AcceptanceAnalysis(nested(store, background={"off_observations": by_cone}))
    analysis.get_observations()
    assert [int(o.obs_id) for o in analysis.off_observations] == [store.off_obs_ids[0]]


def test_model_file_is_applied_without_a_fit(store, region_file, tmp_path, monkeypatch):
    exclusion = {"exclusion": str(region_file)}
    fitted = analysed(nested(store, background=exclusion))
    model = tmp_path / "model.fits"
    fitted.acceptance_maker.model.write(model)

    def refuse(*args, **kwargs):
        raise AssertionError("it fits")

    monkeypatch.setattr(AcceptanceBackgroundMaker, "fit", refuse)
    read = analysed(nested(store, parameters={}, background={**exclusion, "model": str(model)}))
    assert_same_datasets(read.datasets, fitted.datasets)
    # options of the application may differ from those of the fit
    scaled = analysed(
        nested(store, parameters={"renormalization": {"type": "fov"}}, background={**exclusion, "model": str(model)})
    )
    assert scaled.acceptance_maker.config.model.type == "radial"
    assert scaled.acceptance_maker.config.renormalization.type == "fov"
    for parameters in ({"model": {"type": "grid"}}, {"offset_max": "2 deg"}):
        with pytest.raises(InputError, match=f"datasets.background.parameters.{next(iter(parameters))}.*leave it out"):
            AcceptanceAnalysis(
                nested(store, parameters=parameters, background={"model": str(model)})
            ).get_observations()
    AcceptanceAnalysis(nested(store, parameters=FAST, background={"model": str(model)})).get_observations()
    # a renormalisation of the file is held against the datasets as well
    ring = AcceptanceConfig(renormalization={"type": "ring"}, **FAST).to_yaml()
    replace(fitted.acceptance_maker.model, config=ring).write(model, overwrite=True)
    analysis = AcceptanceAnalysis(nested(store, parameters={}, background={"model": str(model)}))
    with pytest.raises(InputError, match="renormalization.type: 'ring' needs one energy bin"):
        analysis.get_observations()


def test_exclusion_as_map_and_as_region_file(store, region_file, tmp_path):
    region = source_region(store)
    geom = WcsGeom.create(skydir=region.center, width=2, binsz=0.01)
    mask = ~geom.region_mask([region])
    mask.write(tmp_path / "mask.fits")
    table = RegionGeom.from_regions(
        [region], wcs=geom.wcs, axes=[MapAxis.from_energy_bounds("1 TeV", "10 TeV", nbin=1)]
    )
    table.to_hdulist(format="ogip").writeto(tmp_path / "regions.fits")
    by_mask = analysed(nested(store, background={"exclusion": str(tmp_path / "mask.fits")}))
    assert_same_datasets(by_mask.datasets, made_by_makers(by_mask.config, exclusion=mask))
    by_region = analysed(nested(store, background={"exclusion": str(region_file)}))
    by_table = analysed(nested(store, background={"exclusion": str(tmp_path / "regions.fits")}))
    without = analysed(nested(store))
    assert_allclose(by_table.datasets[0].background.data, by_region.datasets[0].background.data, rtol=1e-9)
    assert_allclose(by_mask.datasets[0].background.data.sum(), by_region.datasets[0].background.data.sum(), rtol=5e-3)
    # the source is in the model where it is not excluded
    assert without.datasets[0].background.data.sum() > 1.001 * by_region.datasets[0].background.data.sum()


def test_exclusion_that_cannot_be_read_is_named_before_the_runs_are_read(store, tmp_path):
    path = tmp_path / "mask.fits"
    path.write_text("no fits")
    analysis = AcceptanceAnalysis(nested(store, background={"exclusion": str(path)}))
    with pytest.raises(InputError, match="datasets.background.exclusion.*mask.fits"):
        analysis.get_observations()
    assert analysis.observations is None


def test_spectra(store, region_file):
    analysis = analysed(nested(store, kind="1d", stack=False, background={"exclusion": str(region_file)}))
    assert {type(dataset) for dataset in analysis.datasets} == {SpectrumDataset}
    assert_same_datasets(analysis.datasets, made_by_makers(analysis.config, exclusion=region_file))
    stacked = analysed(nested(store, kind="1d", background={"exclusion": str(region_file)}))
    assert_allclose(stacked.datasets[0].background.data, sum(d.background.data for d in analysis.datasets), rtol=1e-6)


def test_renormalization(store, region_file):
    exclusion = {"exclusion": str(region_file)}
    fov = FAST | {"renormalization": {"type": "fov"}}
    analysis = analysed(nested(store, parameters=fov, stack=False, background=exclusion))
    assert_same_datasets(analysis.datasets, made_by_makers(analysis.config, fov, exclusion=region_file))
    assert all(dataset.background_model is not None for dataset in analysis.datasets)
    ring = FAST | {"renormalization": {"type": "ring", "r_in": "0.6 deg", "width": "0.3 deg"}}
    analysis = analysed(nested(store, parameters=ring, nbins=1, background=exclusion))
    by_hand = made_by_makers(analysis.config, ring, exclusion=region_file)
    assert_allclose(analysis.datasets[0].background.data, by_hand[0].background.data, rtol=1e-12)
    analysis.get_excess_map()
    assert np.nanmax(analysis.excess_map["sqrt_ts"].data) > 5


def test_whole_analysis(store, region_file):
    """From runs to excess map, fit, flux points and light curve; the spectrum is that of the simulation."""
    edges = {"energy_edges": {**ENERGY, "nbins": 1}}
    points = {"energy": {**ENERGY, "nbins": 2}, "parameters": {"selection_optional": ["ul"]}}
    more = {"excess_map": edges, "flux_points": points, "light_curve": {**edges, "parameters": {}}}
    more |= {"true": {**TRUE, "nbins": 12}, "background": {"exclusion": str(region_file)}}
    analysis = analysed(nested(store, nbins=4, **more))
    analysis.get_excess_map()
    assert analysis.excess_map["sqrt_ts"].get_by_coord([*_lonlat(store), 2 * u.TeV]) > 4
    source = SkyModel(store.source.spectral_model.copy(), store.source.spatial_model.copy(), name="source")
    for parameter in source.spatial_model.parameters:
        parameter.frozen = True
    truth = source.spectral_model.integral(0.5 * u.TeV, 10 * u.TeV).to_value("cm-2 s-1")
    analysis.set_models([source])
    assert analysis.models.names == ["source", "stacked-bkg"]
    analysis.run_fit()
    assert analysis.fit_result.success
    norm = analysis.models["stacked-bkg"].parameters["norm"]
    assert_allclose(norm.value, 1, atol=0.1)  # this model knows nothing of the energy shifts of the runs
    amplitude = analysis.models["source"].parameters["amplitude"]
    assert_allclose(amplitude.value, store.source.parameters["amplitude"].value, atol=4 * amplitude.error)
    analysis.get_flux_points()
    assert analysis.flux_points.data.geom.axes["energy"].nbin == 2
    analysis.get_light_curve()
    assert_allclose(np.squeeze(analysis.light_curve.flux.data), truth, rtol=0.25)


def _lonlat(store):
    position = source_position(store)
    return position.ra, position.dec


def test_runs_without_a_background_of_their_own_are_kept(store):
    """gammapy asks for one by default, and leaves out the runs that have none: all of this store."""
    options = nested(store)
    plain = {**options, "datasets": {**options["datasets"], "background": {"method": "ring"}}}
    for irf in (None, ["aeff", "edisp", "psf", "bkg"]):
        if irf:
            options["observations"]["required_irf"] = irf
        analysis = AcceptanceAnalysis(options)
        analysis.get_observations()
        assert len(analysis.observations) == 2
        assert analysis.config.observations.required_irf == ["aeff", "edisp", "psf", "bkg"]  # as given
    analysis = AcceptanceAnalysis(plain)
    analysis.get_observations()
    assert len(analysis.observations) == 0


def test_get_acceptance_needs_no_datasets(store):
    options = nested(store)
    del options["datasets"]["geom"], options["datasets"]["on_region"]
    analysis = AcceptanceAnalysis(options)
    with pytest.raises(RuntimeError, match="No observations"):
        analysis.get_acceptance()
    analysis.get_observations()
    assert analysis.get_acceptance() is analysis.acceptance_maker
    assert analysis.acceptance_maker.run_table["USED"].all()
    analysis.update_config("datasets: {background: {method: ring}}")
    with pytest.raises(InputError, match="datasets.background.method"):
        analysis.get_acceptance()


# -- the configuration


@pytest.mark.parametrize("name", ["docs", "example-1d", "example-3d"])
def test_configurations_of_gammapy_load_unchanged(name):
    path = CONFIG_PATH / f"{name}.yaml"
    ours, theirs = AcceptanceAnalysisConfig.read(path), AnalysisConfig.read(path)
    assert type(ours) is AcceptanceAnalysisConfig
    assert dump(ours) == dump(theirs)
    assert (
        str(ours).split("metadata")[0]
        == str(theirs).replace("AnalysisConfig", "AcceptanceAnalysisConfig").split("metadata")[0]
    )
    assert AnalysisConfig(**dump(ours)) == theirs


def test_default_is_that_of_gammapy():
    assert dump(AcceptanceAnalysisConfig()) == dump(AnalysisConfig())


def full_options(store, region_file):
    parameters = FAST | {"offset_max": "2 deg", "renormalization": {"type": "fov"}}
    off = {"obs_ids": [1, 2], "obs_time": {"start": "2004-12-04", "stop": "2004-12-06"}}
    return nested(store, parameters=parameters, background={"exclusion": str(region_file), "off_observations": off})


def test_round_trips_keep_the_class(store, region_file, tmp_path):
    config = AcceptanceAnalysisConfig(**full_options(store, region_file) | {"general": {"log": {"level": "WARNING"}}})
    config.write(tmp_path / "config.yaml")
    for again in (
        AcceptanceAnalysisConfig.read(tmp_path / "config.yaml"),
        AcceptanceAnalysisConfig.from_yaml(config.to_yaml()),
        AcceptanceAnalysisConfig.model_validate_json(config.model_dump_json()),
        AcceptanceAnalysisConfig(**config.model_dump()),
        AcceptanceAnalysisConfig().update(config),
        AcceptanceAnalysisConfig().update(config.to_yaml()),
        AcceptanceAnalysis(config).config,
        config.model_copy(deep=True),
    ):
        assert type(again) is AcceptanceAnalysisConfig
        assert dump(again) == dump(config)
    with pytest.raises(OSError, match="exists"):
        config.write(tmp_path / "config.yaml")
    background = dump(config)["datasets"]["background"]
    assert background["parameters"] == FAST | {"offset_max": "2.0 deg", "renormalization": {"type": "fov"}}
    assert background["off_observations"]["obs_ids"] == [1, 2]
    assert "model" not in background
    assert str(config).startswith("AcceptanceAnalysisConfig\n\n") and "method: acceptance" in str(config)
    assert "method: acceptance" in config._repr_html_()


def test_parameters_may_be_a_configuration_or_hold_quantities(store):
    given = AcceptanceConfig(offset_max=2 * u.deg, **FAST)
    config = AcceptanceAnalysisConfig(**nested(store, parameters=given))
    again = AcceptanceAnalysisConfig.from_yaml(config.to_yaml())
    assert AcceptanceConfig.coerce(again.datasets.background.parameters).to_yaml() == given.to_yaml()
    config = AcceptanceAnalysisConfig(**nested(store, parameters={"offset_max": 2 * u.deg}))
    assert dump(config)["datasets"]["background"]["parameters"] == {"offset_max": "2.0 deg"}

    def gaussian(energy, fov_lon, fov_lat, norm=1e-6, sigma=1.0):
        return norm * energy**-2.7 * np.exp(-0.5 * (fov_lon**2 + fov_lat**2) / sigma**2)

    given = {"model": {"type": "parametric", "function": gaussian, "parameters": {"sigma": {"min": 0.1}}}}
    parametric = AcceptanceAnalysisConfig(**nested(store, parameters=given))
    assert parametric.datasets.background.parameters["model"]["function"] is gaussian
    assert "gaussian" in dump(parametric)["datasets"]["background"]["parameters"]["model"]["function"]
    assert parametric.update("datasets: {stack: false}").datasets.background.parameters == given
    config.datasets.background.parameters = {"energy": {"min": 300 * u.GeV}}
    assert dump(config)["datasets"]["background"]["parameters"] == {"energy": {"min": "300.0 GeV"}}


def test_options_of_gammapys_classes_are_taken(store):
    config = AcceptanceAnalysisConfig(datasets=DatasetsConfig(background=BackgroundConfig(method="ring")))
    assert type(config.datasets) is not DatasetsConfig and config.datasets.background.method == "ring"
    config.datasets.background = BackgroundConfig(method="reflected")
    config.datasets.background.method = "acceptance"
    config.datasets.background.off_observations = ObservationsConfig(datastore=store.path, obs_ids=[1])
    assert config.datasets.background.off_observations.obs_ids == [1]
    analysis = AcceptanceAnalysis(AnalysisConfig(general={"outdir": "there"}))
    assert type(analysis.config) is AcceptanceAnalysisConfig and analysis.config.general.outdir == "there"
    analysis.config = {"general": {"outdir": "elsewhere"}}
    assert type(analysis.config) is AcceptanceAnalysisConfig
    for wrong in ("spam", 0, None):
        with pytest.raises(TypeError, match="AcceptanceAnalysisConfig"):
            analysis.config = wrong
    for wrong in (0, None):
        with pytest.raises(TypeError, match="AcceptanceAnalysisConfig"):
            analysis.update_config(wrong)


def test_update(store):
    config = AcceptanceAnalysisConfig(**nested(store))
    new = config.update("datasets: {background: {parameters: {model: {type: grid}}}, stack: false}")
    assert new.datasets.background.parameters == FAST | {"model": {"type": "grid"}}
    assert config.datasets.background.parameters == FAST and config.datasets.stack
    assert new.observations.obs_ids == list(store.on_obs_ids[:2]) and not new.datasets.stack
    assert new.update({"datasets": {"stack": True}}).datasets.stack
    # the parameters of another method are not kept
    ring = config.update("datasets: {background: {method: ring, parameters: {r_in: 0.5 deg}}}")
    assert ring.datasets.background.parameters == {"r_in": "0.5 deg"}
    assert ring.update("datasets: {background: {method: acceptance}}").datasets.background.parameters == {}
    assert ring.update("datasets: {background: {parameters: {width: 0.3 deg}}}").datasets.background.parameters == {
        "r_in": "0.5 deg",
        "width": "0.3 deg",
    }
    analysis = AcceptanceAnalysis(config)
    analysis.update_config("general: {n_jobs: 2}")
    assert type(analysis.config) is AcceptanceAnalysisConfig and analysis.config.general.n_jobs == 2
    analysis.update_config(AnalysisConfig(general={"n_jobs": 3}))
    assert analysis.config.general.n_jobs == 3 and analysis.config.datasets.background.method == "acceptance"


# -- bad input


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused_by_key(name, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("data are read")

    monkeypatch.setattr(DataStore, "from_dir", read)
    options, message = WRONG[name]
    for make in (
        lambda: AcceptanceAnalysisConfig.from_yaml(yaml.safe_dump(options)),
        lambda: AcceptanceAnalysis(options),
        lambda: AcceptanceAnalysisConfig().update(options),
    ):
        with pytest.raises(InputError, match=f"(?s){message}"):
            make()
    with pytest.raises(ValueError):  # of pydantic, where it reports the key
        AcceptanceAnalysisConfig(**options)


@pytest.mark.parametrize("wrong", ["", "a: b: c", "- 1", "text"])
def test_text_that_is_no_configuration(wrong):
    with pytest.raises(InputError, match="config: "):
        AcceptanceAnalysisConfig.from_yaml(wrong)


def test_no_file():
    with pytest.raises(InputError, match="there is no file none.yaml; write one"):
        AcceptanceAnalysisConfig.read("none.yaml")


def test_model_and_off_runs_contradict_each_other(tmp_path):
    (tmp_path / "model.fits").touch()
    options = background(model=str(tmp_path / "model.fits"), off_observations={"obs_ids": [1]})
    with pytest.raises(InputError, match=f"{OFF}: with `model`, nothing is fitted; leave one"):
        AcceptanceAnalysisConfig.from_options(options)


def test_what_is_assigned_in_place_is_refused_before_data_are_read(store, monkeypatch):
    analysis = AcceptanceAnalysis(nested(store, nbins=1, parameters=FAST | {"renormalization": {"type": "ring"}}))
    analysis.get_observations()
    analysis.config.datasets.geom.axes.energy.nbins = 2
    monkeypatch.setattr(AcceptanceBackgroundMaker, "fit", None)  # it would be the first to read data
    for step in (analysis.get_observations, analysis.get_acceptance, analysis.get_datasets):
        with pytest.raises(InputError, match="needs one energy bin"):
            step()
    with pytest.raises(ValueError, match="offset_maximum"):
        analysis.config.datasets.background.parameters = {"offset_maximum": 1}


@pytest.mark.parametrize("kind, key", [("1d", "datasets.on_region: frame"), ("3d", "datasets.geom.wcs.skydir: frame")])
def test_what_is_missing_for_datasets(store, kind, key):
    options = nested(store, kind=kind)
    del options["datasets"]["on_region"], options["datasets"]["geom"]["wcs"]
    analysis = AcceptanceAnalysis(options)
    analysis.get_observations()
    with pytest.raises(InputError, match=f"{key}.*missing; `datasets.type: {kind}` needs"):
        analysis.get_datasets()


def test_runs_that_are_not_in_the_store(store):
    analysis = AcceptanceAnalysis(nested(store, background={"off_observations": {"obs_ids": [3]}}))
    with pytest.raises(InputError, match=f"{OFF}: the runs cannot be had from"):
        analysis.get_observations()
    cone = {"frame": "icrs", "lon": "200 deg", "lat": "80 deg", "radius": "1 deg"}
    analysis = AcceptanceAnalysis(nested(store, background={"off_observations": {"obs_cone": cone}}))
    with pytest.raises(InputError, match=f"{OFF}: it selects none of the runs"):
        analysis.get_observations()


def test_other_methods_go_on_working(store, caplog):
    """gammapy's classes and ours give the same spectra and maps."""
    options = nested(store, background={"method": "reflected"}, parameters={}, kind="1d", stack=False)
    options["observations"]["required_irf"] = IRFS
    options["datasets"]["on_region"]["radius"] = "0.1 deg"
    pair = [Analysis(AnalysisConfig(**options)), AcceptanceAnalysis(options)]
    for analysis in pair:
        analysis.get_observations()
        analysis.get_datasets()
    for one, other in zip(*(analysis.datasets for analysis in pair), strict=True):
        assert_allclose(one.counts_off.data, other.counts_off.data)
        assert one.counts_off.data.sum() > 0
    options["datasets"]["background"] = {}
    analysis = AcceptanceAnalysis(options)
    analysis.get_observations()
    analysis.get_datasets()
    assert "No background maker set" in caplog.text


def test_earlier_gammapy_is_refused_when_the_workflow_is_made(monkeypatch):
    monkeypatch.setattr(gammapy_accmaker.analysis.workflow, "SUPPORTED", False)
    with pytest.raises(AcceptanceError, match="need gammapy >= 2.1; upgrade gammapy, or use AcceptanceAnalysis"):
        AcceptanceWorkflow({})


def test_parameters_are_validated_once_and_again_where_they_are_changed_in_place(store, monkeypatch):
    calls = []

    def counted(parameters, validate=analysis_config.read_parameters):
        calls.append(parameters)
        return validate(parameters)

    monkeypatch.setattr(analysis_config, "read_parameters", counted)
    config = AcceptanceAnalysisConfig.from_yaml(
        yaml.safe_dump(nested(store, parameters=FAST | {"offset_max": "2 deg"}))
    )
    analysis = AcceptanceAnalysis(config)
    analysis.get_observations()
    config.check_complete()
    assert config.to_yaml() and len(calls) == 1
    background = analysis.config.datasets.background
    background.parameters["offset_max"] = "1 deg"
    assert background.options.offset_max == 1 * u.deg and len(calls) == 2
    background.parameters["fit_energy"] = [1, 2, 4] * u.TeV
    assert len(background.options.fit_energy) == 3
    background.parameters["fit_energy"] = [1, 2, 4, 8] * u.TeV
    assert len(background.options.fit_energy) == 4 and len(calls) == 4
    background.parameters["model"] = {"type": "no such"}
    with pytest.raises(InputError, match="parameters.model"):
        analysis.get_observations()


@pytest.mark.slow
def test_known_sources(store, tmp_path):
    """Of a fit, and of its model that is read again: the background is that of the maker with the same sources."""
    Models([store.source]).write(tmp_path / "sources.yaml", write_covariance=False)
    parameters = {**FAST, "sources": {"type": "models", "models": str(tmp_path / "sources.yaml"), "bands": 1}}
    analysis = analysed(nested(store, parameters=parameters))
    model = analysis.acceptance_maker.model
    assert model.sources.names == [store.source.name]
    options = FAST | {"sources": {"type": "models", "bands": 1}}
    maker = AcceptanceBackgroundMaker(options, sources=store.source).fit(analysis.observations)
    assert maker.model.source_table["AMPLITUDE"].tolist() == model.source_table["AMPLITUDE"].tolist()
    model.write(tmp_path / "model.fits")
    applied = {"parameters": {"sources": parameters["sources"]}, "background": {"model": str(tmp_path / "model.fits")}}
    again = analysed(nested(store, **applied))
    first, second = (one.datasets[0].background.data for one in (analysis, again))
    assert_allclose(second, first, rtol=1e-9)
