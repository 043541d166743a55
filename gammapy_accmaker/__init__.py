"""Background models of imaging Cherenkov telescopes, fitted from the observations, for gammapy."""

from gammapy_accmaker.acceptance import AcceptanceModel
from gammapy_accmaker.config import AcceptanceConfig
from gammapy_accmaker.fit import fit_acceptance
from gammapy_accmaker.maker import AcceptanceBackgroundMaker
from gammapy_accmaker.products.dl3 import attach_background
from gammapy_accmaker.reduction.matching import match_observations
from gammapy_accmaker.validation.cross_validation import cross_validate

__all__ = [
    "AcceptanceBackgroundMaker",
    "AcceptanceConfig",
    "AcceptanceModel",
    "attach_background",
    "cross_validate",
    "fit_acceptance",
    "match_observations",
]
