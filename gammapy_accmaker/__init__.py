"""Background models of imaging Cherenkov telescopes, fitted from the observations, for gammapy."""

from gammapy_accmaker.acceptance.dl3 import attach_background
from gammapy_accmaker.acceptance.fit import fit_acceptance
from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.acceptance.model import AcceptanceModel
from gammapy_accmaker.acceptance.plan import plan_groups
from gammapy_accmaker.analysis.analysis import AcceptanceAnalysis
from gammapy_accmaker.analysis.config import AcceptanceAnalysisConfig
from gammapy_accmaker.analysis.workflow import AcceptanceWorkflow, AcceptanceWorkflowConfig
from gammapy_accmaker.config.config import AcceptanceConfig
from gammapy_accmaker.data.matching import match_observations
from gammapy_accmaker.validation.cross_validation import cross_validate

__all__ = [
    "AcceptanceAnalysis",
    "AcceptanceAnalysisConfig",
    "AcceptanceBackgroundMaker",
    "AcceptanceConfig",
    "AcceptanceModel",
    "AcceptanceWorkflow",
    "AcceptanceWorkflowConfig",
    "attach_background",
    "cross_validate",
    "fit_acceptance",
    "match_observations",
    "plan_groups",
]
