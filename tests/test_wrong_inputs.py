"""Whatever is given in place of what is wanted, the error is one of this package, and names the argument."""

import numpy as np
import pytest
from gammapy.data import DataStore
from stores import observations, options, plain_store

from gammapy_accmaker import (
    AcceptanceAnalysis,
    AcceptanceAnalysisConfig,
    AcceptanceBackgroundMaker,
    AcceptanceConfig,
    AcceptanceWorkflow,
    AcceptanceWorkflowConfig,
    cross_validate,
    fit_acceptance,
    match_observations,
    plan_groups,
)
from gammapy_accmaker.errors import InputError, NotFittedError
from gammapy_accmaker.workflow import SUPPORTED

RADIAL = options("radial", "none")


@pytest.fixture(scope="module")
def runs():
    return observations(plain_store())


CALLS = {
    "fit_acceptance": lambda given: fit_acceptance(given, RADIAL),
    "maker.fit": lambda given: AcceptanceBackgroundMaker(RADIAL).fit(given),
    "OFF runs": lambda given: AcceptanceBackgroundMaker(RADIAL).fit(observations(plain_store())[:1], given),
    "plan_groups": lambda given: plan_groups(given, {"model": {"type": "radial"}}),
    "cross_validate": lambda given: cross_validate(given, {"a": RADIAL}),
    "match_observations": lambda given: match_observations(given, observations(plain_store())[:1]),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_data_store_in_place_of_observations(call):
    with pytest.raises(InputError, match=r"got a DataStore.*get_observations"):
        CALLS[call](DataStore.from_dir(plain_store().path))


@pytest.mark.parametrize("given", [3, "dl3", [1, 2], [None], {"a": 1}, np.zeros(3), b"x", ["dl3"], [[]]], ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_observations(call, given):
    with pytest.raises(InputError, match=r"(observations|on): got .*`Observation` is needed; take them"):
        CALLS[call](given)


def test_one_observation_is_a_list_of_one(runs):
    one, same = (fit_acceptance(given, RADIAL) for given in (runs[0], [runs[0]]))
    assert np.array_equal(one.rate_model.counts, same.rate_model.counts)


def test_before_the_fit():
    maker = AcceptanceBackgroundMaker()
    for use in (lambda: maker.model.peek(), lambda: maker.model.write("x.fits"), lambda: maker.found_regions):
        with pytest.raises(NotFittedError, match=r"call `maker.fit\(observations\)` first"):
            use()
    assert not maker.is_fitted and "call fit" in str(maker)
    with pytest.raises(InputError, match="model: got str.*AcceptanceModel.read"):
        AcceptanceBackgroundMaker(model="model.fits")
    with pytest.raises(InputError, match="model: got NoneType"):
        maker.model = None


READERS = {
    "maker": lambda config: AcceptanceBackgroundMaker(config).config,
    "fit_acceptance": lambda config: AcceptanceConfig.from_yaml(
        fit_acceptance(observations(plain_store())[0], config).config
    ),
    "coerce": AcceptanceConfig.coerce,
}


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["text", "path"])
@pytest.mark.parametrize("reader", READERS)
def test_the_path_of_a_configuration(reader, kind, tmp_path):
    path = tmp_path / "config.yaml"
    config = AcceptanceConfig.coerce(RADIAL | {"offset_max": "2.1 deg"})
    config.write(path)
    assert READERS[reader](kind(path)) == config
    with pytest.raises(InputError, match="there is no file.*none.yaml; write one"):
        READERS[reader](kind(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="no file"):
        READERS[reader](kind(tmp_path))


def test_paths_for_other_functions(runs, tmp_path):
    path = tmp_path / "config.yaml"
    AcceptanceConfig.coerce({"model": {"type": "radial"}}).write(path)
    assert plan_groups(runs, path).n_groups == plan_groups(runs, {"model": {"type": "radial"}}).n_groups
    with pytest.raises(InputError, match="there is no file"):
        cross_validate(runs, {"a": tmp_path / "none.yaml"})


EXTENDED = [(AcceptanceAnalysis, AcceptanceAnalysisConfig)]
if SUPPORTED:
    EXTENDED.append((AcceptanceWorkflow, AcceptanceWorkflowConfig))


@pytest.mark.parametrize(("cls", "config_class"), EXTENDED)
def test_the_path_of_an_analysis(cls, config_class, tmp_path):
    path = tmp_path / "analysis.yaml"
    path.write_text("general: {log: {level: warning}}\ndatasets: {background: {method: acceptance}}\n")
    for given in (path, str(path)):
        config = cls(given).config
        assert type(config) is config_class and config.datasets.background.method == "acceptance"
    for wrong in ("a.yaml", tmp_path / "a.yaml", tmp_path, "x: 1", "a" * 5000, "a\0b"):
        with pytest.raises(InputError, match="config: got"):
            cls(wrong)


@pytest.mark.parametrize("wrong", [{"offset_maxx": 1}, {"modle": {}}, {"model": {"type": "radial", "offset_bin": 3}}])
def test_one_printer_of_errors(wrong, tmp_path):
    """Python says what the command line says, with the same hint."""
    path = tmp_path / "config.yaml"
    path.write_text(str(wrong))
    said = set()
    for given in (wrong, path):
        with pytest.raises(InputError, match="unknown key; did you mean") as caught:
            AcceptanceBackgroundMaker(given)
        said.add(str(caught.value).removeprefix("config: "))
    with pytest.raises(InputError) as caught:
        AcceptanceAnalysis({"datasets": {"background": {"method": "acceptance", "parameters": wrong}}})
    said.add(str(caught.value).removeprefix("config: ").removeprefix("datasets.background.parameters."))
    assert len(said) == 1
