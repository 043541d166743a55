"""gammapy's own tests of its analysis, workflow and configurations, run with the classes that extend them.

Left out are the longest, of a minute and a half in all, in which nothing of ours takes part that others do not test.
"""

import os
import types
from pathlib import Path

import pytest

from gammapy_accmaker import AcceptanceAnalysis, AcceptanceAnalysisConfig, AcceptanceWorkflow, AcceptanceWorkflowConfig
from gammapy_accmaker.analysis.workflow import SUPPORTED

pytestmark = pytest.mark.slow

CLASSES = {
    "Analysis": AcceptanceAnalysis,
    "AnalysisConfig": AcceptanceAnalysisConfig,
    "Workflow": AcceptanceWorkflow,
    "WorkflowConfig": AcceptanceWorkflowConfig,
}
MODULES = {
    "analysis_config": "gammapy.analysis.tests.test_config",
    "analysis": "gammapy.analysis.tests.test_analysis",
    "workflow_config": "gammapy.workflow.tests.test_config",
} | ({"workflow": "gammapy.workflow.tests.test_workflow"} if SUPPORTED else {})
LONGEST = {
    "test_analysis_1d",
    "test_analysis_1d_stacked_no_fit_range",
    "test_analysis_3d",
    "test_exclusion_region",
    "test_workflow_1d",
    "test_workflow_1d_stacked_no_fit_range",
    "test_workflow_3d",
}
OTHER_DATA = ("cta-1dc", "joint-crab")


def with_our_classes(module):
    """Tests of a module, in whose names gammapy's classes are ours."""
    names = dict(vars(module)) | {name: cls for name, cls in CLASSES.items() if name in vars(module)}
    for name, function in vars(module).items():
        if isinstance(function, types.FunctionType) and function.__module__ == module.__name__:
            names[name] = types.FunctionType(function.__code__, names, name)
            names[name].pytestmark = marks(function)
            if name.startswith("test_") and name not in LONGEST:
                yield name, names[name]


def marks(function):
    """Those that it has; where it needs data, that it does."""
    given = list(getattr(function, "pytestmark", []))
    if given:
        given.append(pytest.mark.gammapy_data)
    constants = str(function.__code__.co_consts)
    for folder in OTHER_DATA:
        if folder in constants:
            path = Path(os.environ.get("GAMMAPY_DATA", "")) / folder
            given.append(pytest.mark.skipif(not path.is_dir(), reason=f"there is no {path}"))
    return given


for key, path in MODULES.items():
    module = pytest.importorskip(path, reason="this gammapy was installed without its tests")
    for name, function in with_our_classes(module):
        globals()[name.replace("test_", f"test_{key}_", 1)] = function
