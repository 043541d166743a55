"""Background models of imaging Cherenkov telescopes, fitted from the observations, for gammapy."""

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.analysis import AcceptanceAnalysis
from gammapy_accmaker.analysis_config import AcceptanceAnalysisConfig
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.fit import fit_acceptance
from gammapy_accmaker.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.plan import plan_groups
from gammapy_accmaker.products.dl3 import attach_background
from gammapy_accmaker.reduction.matching import match_observations
from gammapy_accmaker.validation.cross_validation import cross_validate
from gammapy_accmaker.workflow import AcceptanceWorkflow, AcceptanceWorkflowConfig

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
