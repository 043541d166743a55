"""Background models of imaging Cherenkov telescopes, fitted from the observations, for gammapy.

What is exported is imported when it is first asked for: gammapy takes 2 s to import, which the help of the command line
and tools that look at the version need not wait for.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; HOMES says the same when the names are asked for
    from gammapy_accmaker.acceptance.dl3 import attach_background
    from gammapy_accmaker.acceptance.fit import fit_acceptance, plan_groups
    from gammapy_accmaker.acceptance.maker import AcceptanceBackgroundMaker
    from gammapy_accmaker.acceptance.model import AcceptanceModel
    from gammapy_accmaker.acceptance.sums import background_sum_error
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
    "background_sum_error",
    "cross_validate",
    "fit_acceptance",
    "match_observations",
    "plan_groups",
]

__version__: str

HOMES = {
    "AcceptanceAnalysis": "analysis.analysis",
    "AcceptanceAnalysisConfig": "analysis.config",
    "AcceptanceBackgroundMaker": "acceptance.maker",
    "AcceptanceConfig": "config.config",
    "AcceptanceModel": "acceptance.model",
    "AcceptanceWorkflow": "analysis.workflow",
    "AcceptanceWorkflowConfig": "analysis.workflow",
    "attach_background": "acceptance.dl3",
    "background_sum_error": "acceptance.sums",
    "cross_validate": "validation.cross_validation",
    "fit_acceptance": "acceptance.fit",
    "match_observations": "data.matching",
    "plan_groups": "acceptance.fit",
}


def __getattr__(name: str):
    """What is exported, the version, or a package of this one; it is found at once the next time (PEP 562)."""
    if name in HOMES:
        found = getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        found = version(__name__)
    elif name in _packages():
        found = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *_packages(), "__version__", "__doc__", "__file__", "__name__", "__path__"})


def _packages() -> list[str]:
    return [module.name for module in iter_modules(__path__)]
