"""The acceptance in gammapy's workflow: its steps, alone and in a plain workflow, give the datasets of an analysis."""

import logging

import numpy as np
import pytest
import yaml
from analyses import (
    FAST,
    WRONG,
    analysed,
    assert_same_datasets,
    dump,
    made_by_makers,
    nested,
)
from gammapy.workflow import WORKFLOW_STEP_REGISTRY, Workflow, WorkflowConfig
from gammapy.workflow.config import CONFIG_PATH, BackgroundConfig
from numpy.testing import assert_allclose

from gammapy_accmaker import AcceptanceWorkflow, AcceptanceWorkflowConfig
from gammapy_accmaker.analysis.workflow import SUPPORTED
from gammapy_accmaker.errors import InputError

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="needs the workflow steps of gammapy >= 2.1")


@pytest.mark.parametrize("kind", ["3d", "1d"])
def test_the_three_ways_give_the_same_datasets(store, kind):
    options = nested(store, stack=False, kind=kind)
    workflow = AcceptanceWorkflow(AcceptanceWorkflowConfig.from_yaml(yaml.safe_dump(options)))
    workflow.get_observations()
    workflow.get_datasets()
    assert_same_datasets(workflow.datasets, analysed(options).datasets)
    assert_same_datasets(workflow.datasets, made_by_makers(workflow.config))
    assert workflow.acceptance_maker.run_table["USED"].all()
    assert workflow.off_observations is None


def test_off_runs(store):
    options = nested(store, background={"off_observations": {"obs_ids": list(store.off_obs_ids)}})
    workflow = AcceptanceWorkflow(options)
    workflow.run(["observations", "datasets"])
    assert len(workflow.off_observations) == len(store.off_obs_ids)
    assert_same_datasets(workflow.datasets, analysed(options).datasets)


def test_steps_in_gammapys_own_workflow(store):
    """They are in the registry; gammapy's observations lose the runs without a background of their own."""
    tags = [step.tag for step in WORKFLOW_STEP_REGISTRY]
    assert len(set(tags)) == len(tags)
    config = AcceptanceWorkflowConfig(**nested(store))
    workflow = Workflow(config)
    workflow.run(["acceptance-observations", "acceptance-datasets"])
    expected = analysed(nested(store)).datasets
    assert_same_datasets(workflow.datasets, expected)
    config.observations.required_irf = ["aeff", "edisp", "psf"]
    workflow = Workflow(config)
    workflow.run(["observations", "acceptance-datasets"])
    assert_same_datasets(workflow.datasets, expected)
    # with another method they are gammapy's, which needs the background of the runs
    workflow = Workflow(
        AcceptanceWorkflowConfig(**nested(store, background={"method": "fov_background"}, parameters={}))
    )
    workflow.run(["acceptance-observations"])
    assert len(workflow.observations) == 0


def test_steps_of_the_configuration(store, tmp_path):
    """From runs to files; without overwriting, the datasets are read back."""
    options = nested(store)
    options["general"] |= {
        "datasets_file": str(tmp_path / "datasets.yaml"),
        "models_file": str(tmp_path / "models.yaml"),
        "steps": ["data-selection", "excess-map"],
        "overwrite": [True, True],
    }
    options["excess_map"] = {"energy_edges": {"min": "0.5 TeV", "max": "10 TeV", "nbins": 1}}
    workflow = AcceptanceWorkflow(options)
    workflow.run()
    assert (tmp_path / "datasets.yaml").is_file()
    assert np.isfinite(workflow.excess_map["sqrt_ts"].data).any()
    assert [step.tag for step in workflow.steps] == ["acceptance-data-selection", "excess-map"]
    options["general"]["overwrite"] = [False, True]
    again = AcceptanceWorkflow(options)
    again.run()
    assert again.observations is None
    assert_allclose(again.datasets[0].background.data, workflow.datasets[0].background.data)
    options["general"]["datasets_file"] = None
    with pytest.raises(InputError, match="general.datasets_file: .*use the steps 'observations' and 'datasets'"):
        AcceptanceWorkflow(options).run()


def test_other_methods_are_those_of_gammapy(store, caplog):
    options = nested(store, background={"method": None}, parameters={})
    options["observations"]["required_irf"] = ["aeff", "edisp", "psf"]
    options["datasets"]["map_selection"] = ["counts", "exposure"]
    workflow = AcceptanceWorkflow(options)
    workflow.run(["observations", "datasets"])
    assert [step.tag for step in workflow.steps] == ["observations", "datasets"]
    assert "No background maker set" in caplog.text
    assert workflow.acceptance_maker is None
    plain = Workflow(WorkflowConfig(**yaml.safe_load(yaml.safe_dump(options))))
    plain.run(["observations", "datasets"])
    assert_allclose(workflow.datasets[0].counts.data, plain.datasets[0].counts.data)


@pytest.mark.parametrize("name", ["docs", "example-1d", "example-3d"])
def test_configurations_of_gammapy_load_unchanged(name):
    path = CONFIG_PATH / f"{name}.yaml"
    ours, theirs = AcceptanceWorkflowConfig.read(path), WorkflowConfig.read(path)
    assert type(ours) is AcceptanceWorkflowConfig
    assert dump(ours) == dump(theirs)
    assert WorkflowConfig(**dump(ours)) == theirs


def test_round_trips_keep_the_class(store, tmp_path):
    config = AcceptanceWorkflowConfig(**nested(store, background={"off_observations": {"obs_ids": [1]}}))
    config.write(tmp_path / "config.yaml")
    for again in (
        AcceptanceWorkflowConfig.read(tmp_path / "config.yaml"),
        AcceptanceWorkflowConfig.from_yaml(config.to_yaml()),
        AcceptanceWorkflowConfig().update(config),
        AcceptanceWorkflowConfig().update(config.to_yaml()),
    ):
        assert type(again) is AcceptanceWorkflowConfig
        assert dump(again) == dump(config)
    assert str(config).startswith("AcceptanceWorkflowConfig\n\n")
    workflow = AcceptanceWorkflow(config)
    workflow.update_config("datasets: {background: {parameters: {offset_max: 2 deg}}}")
    assert type(workflow.config) is AcceptanceWorkflowConfig
    assert workflow.config.datasets.background.parameters == FAST | {"offset_max": "2 deg"}
    workflow.config = WorkflowConfig(general={"n_jobs": 2})
    assert type(workflow.config) is AcceptanceWorkflowConfig and workflow.config.general.n_jobs == 2
    workflow.config.datasets.background = BackgroundConfig(method="ring")
    assert workflow.config.datasets.background.model is None
    with pytest.raises(TypeError, match="AcceptanceWorkflowConfig"):
        AcceptanceWorkflow("spam")


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused_by_key(name):
    options, message = WRONG[name]
    with pytest.raises(InputError, match=f"(?s){message}"):
        AcceptanceWorkflow(options)


def test_wrong_steps_are_refused():
    background = {"datasets": {"background": {"method": "acceptance"}}}
    with pytest.raises(InputError, match="general.steps: there is no step 'fitt'; known are .*'?fit"):
        AcceptanceWorkflow({"general": {"steps": ["fitt"]}, **background})
    steps = ["observations", "datasets", "fit", "excess-map"]
    with pytest.raises(InputError, match="general.overwrite: got 3 for 4 steps"):
        AcceptanceWorkflow({"general": {"steps": steps}, **background})


def test_the_log_of_a_workflow_names_the_steps(store, caplog):
    with caplog.at_level(logging.INFO):
        AcceptanceWorkflow(nested(store)).get_observations()
    assert "Number of selected observations: 2" in caplog.text
