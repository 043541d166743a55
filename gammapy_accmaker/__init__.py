"""Background models of imaging Cherenkov telescopes, fitted from the observations, for gammapy."""

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.fit import fit_acceptance
from gammapy_accmaker.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.plan import plan_groups
from gammapy_accmaker.validation.cross_validation import cross_validate

__all__ = [
    "AcceptanceBackgroundMaker",
    "AcceptanceConfig",
    "AcceptanceModel",
    "cross_validate",
    "fit_acceptance",
    "plan_groups",
]
