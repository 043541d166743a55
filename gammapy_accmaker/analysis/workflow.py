"""gammapy's workflow, with the acceptance among its background methods; for gammapy 2.1 and later."""

from __future__ import annotations

from typing import Annotated

import gammapy
from gammapy.utils.scripts import make_path
from gammapy.workflow import WORKFLOW_STEP_REGISTRY, Workflow, WorkflowConfig
from gammapy.workflow.config import BackgroundConfig, DatasetsConfig
from gammapy.workflow.steps import (
    DataSelectionWorkflowStep,
    DatasetsWorkflowStep,
    ObservationsWorkflowStep,
    WorkflowStepBase,
)

from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.analysis.analysis import AcceptanceReduction, Described, make_fitted_maker, select_runs
from gammapy_accmaker.analysis.config import AcceptanceBackground, ExtendedConfig, as_options
from gammapy_accmaker.errors import AcceptanceError, InputError


class AcceptanceWorkflowBackgroundConfig(AcceptanceBackground, BackgroundConfig):
    """`~gammapy.workflow.config.BackgroundConfig` with `AcceptanceBackground`."""


class AcceptanceWorkflowDatasetsConfig(DatasetsConfig):
    """`~gammapy.workflow.config.DatasetsConfig` with the extended background."""

    background: Annotated[AcceptanceWorkflowBackgroundConfig, as_options(AcceptanceWorkflowBackgroundConfig)] = (
        AcceptanceWorkflowBackgroundConfig()
    )


class AcceptanceWorkflowConfig(ExtendedConfig, WorkflowConfig):
    """`~gammapy.workflow.WorkflowConfig` with ``acceptance`` among the methods of ``datasets.background``.

    The options of the background are those of `AcceptanceAnalysisConfig`.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceWorkflowConfig
    >>> config = AcceptanceWorkflowConfig.from_yaml("datasets: {background: {method: acceptance}}")
    >>> config.datasets.background.method
    'acceptance'
    """

    datasets: Annotated[AcceptanceWorkflowDatasetsConfig, as_options(AcceptanceWorkflowDatasetsConfig)] = (
        AcceptanceWorkflowDatasetsConfig()
    )

    def check(self) -> None:
        """Check what `AcceptanceAnalysisConfig` checks, and with an acceptance the names of the steps.

        Raises
        ------
        InputError
            For choices that contradict each other, files that are not there, a step that is not known, or fewer values
            of ``general.overwrite`` than steps.

        Examples
        --------
        >>> AcceptanceWorkflowConfig.read("config.yaml").check()  # doctest: +SKIP
        """
        super().check()
        if self.datasets.background.method != "acceptance":
            return
        general, known = self.general, [step.tag for step in WORKFLOW_STEP_REGISTRY]
        unknown = [step for step in general.steps if step not in known]
        if unknown:
            raise InputError(f"general.steps: there is no step {unknown[0]!r}; known are {', '.join(known)}")
        if len(general.overwrite) < len(general.steps):
            raise InputError(
                f"general.overwrite: got {len(general.overwrite)} for {len(general.steps)} steps; "
                "give true or false for each"
            )


class AcceptanceObservationsStep(ObservationsWorkflowStep):
    """Observations and OFF observations of a workflow; none is asked for a background."""

    tag = "acceptance-observations"

    def _run(self):
        if self.config.datasets.background.method != "acceptance":
            super()._run()
            return
        inputs = self.inputs
        inputs.datastore, inputs.observations, inputs.off_observations = select_runs(self.config)


class AcceptanceDatasetsStep(AcceptanceReduction, DatasetsWorkflowStep):
    """Datasets of a workflow, with the acceptance as background."""

    tag = "acceptance-datasets"
    outputs_names = ["datasets", "acceptance_maker"]

    def get_acceptance(self) -> AcceptanceBackgroundMaker:
        """Fit the acceptance, or read the model file."""
        off_observations = getattr(self.inputs, "off_observations", None)
        maker = make_fitted_maker(self.config, self.inputs.observations, off_observations)
        self.outputs["acceptance_maker"].data = maker
        return maker


class AcceptanceDataSelectionStep(DataSelectionWorkflowStep):
    """Both, and the datasets written."""

    tag = "acceptance-data-selection"

    def _run(self):
        path = self.config.general.datasets_file
        if path is None:
            raise InputError(
                "general.datasets_file: the step 'data-selection' writes datasets, but got no file; "
                "give one, or use the steps 'observations' and 'datasets'"
            )
        if make_path(path).exists() and not self.overwrite:
            super()._run()
            return
        for step in (AcceptanceObservationsStep, AcceptanceDatasetsStep):
            step(self.config, log=self.log, overwrite=self.overwrite).run(self.inputs)
        self.inputs.write_datasets()


# what runs in the place of a step of gammapy
_STEPS: dict[str, type[WorkflowStepBase]] = {
    "data-selection": AcceptanceDataSelectionStep,
    "observations": AcceptanceObservationsStep,
    "datasets": AcceptanceDatasetsStep,
}

# steps of gammapy 2.0 have no inputs and outputs
SUPPORTED = hasattr(WorkflowStepBase, "set_inputs")
if SUPPORTED:
    WORKFLOW_STEP_REGISTRY.extend(_STEPS.values())


class AcceptanceWorkflow(Described, Workflow):
    """`~gammapy.workflow.Workflow` with ``acceptance`` among the background methods.

    With ``datasets.background.method: acceptance``, the steps "observations", "datasets" and "data-selection" are those
    of this package, as in `AcceptanceAnalysis`. All else is gammapy's. A plain `~gammapy.workflow.Workflow` runs them
    as "acceptance-observations", "acceptance-datasets" and "acceptance-data-selection".

    Parameters
    ----------
    config : dict, `AcceptanceWorkflowConfig` or `~gammapy.workflow.WorkflowConfig`
        Options.

    Attributes
    ----------
    off_observations : `~gammapy.data.Observations` or None
        OFF runs; set by the step "observations".
    acceptance_maker : `AcceptanceBackgroundMaker` or None
        Maker with its model and ``run_table``; set by the step "datasets".

    Raises
    ------
    AcceptanceError
        With gammapy < 2.1, whose steps cannot be extended.

    Examples
    --------
    >>> from gammapy_accmaker import AcceptanceWorkflow
    >>> workflow = AcceptanceWorkflow(AcceptanceWorkflowConfig.read("config.yaml"))  # doctest: +SKIP
    >>> workflow.run()  # doctest: +SKIP
    >>> workflow.acceptance_maker.run_table  # doctest: +SKIP
    """

    config_class = AcceptanceWorkflowConfig

    def __init__(self, config):
        if not SUPPORTED:
            raise AcceptanceError(
                f"AcceptanceWorkflow: got gammapy {gammapy.__version__}, but its steps need gammapy >= 2.1; "
                "upgrade gammapy, or use AcceptanceAnalysis"
            )
        super().__init__(config)

    def run(self, steps=None, overwrite=None, name=None):
        """Run steps.

        Parameters
        ----------
        steps : list of str, optional
            Default: ``general.steps`` of the configuration, with its ``general.overwrite``.
        overwrite : bool or list of bool, optional
            Whether products of each step are made anew. Default: True.
        name : str, optional
            Name of the steps.

        Examples
        --------
        >>> workflow.run(["observations", "datasets"])  # doctest: +SKIP
        """
        if steps is None:
            steps, overwrite = self.config.general.steps, self.config.general.overwrite
        if self.config.datasets.background.method == "acceptance":
            steps = [_STEPS[step].tag if step in _STEPS else step for step in steps]
        super().run(steps, overwrite, name=name)
