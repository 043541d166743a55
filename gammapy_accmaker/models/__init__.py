"""Acceptance models: counts in, fitted rates out; pure array code.

Each kind of model is known by its name in a file as soon as it is defined, and all of them are defined here: a file is
read whatever else was imported before.
"""

from gammapy_accmaker.models.base import RateModel
from gammapy_accmaker.models.binned import BinnedModel
from gammapy_accmaker.models.parametric.model import ParametricModel
from gammapy_accmaker.models.pooled import AzimuthBinned, ModelPerRun, ZenithBinned, ZenithInterpolated
from gammapy_accmaker.models.spline.rate import SplineRate
from gammapy_accmaker.models.tabulated import TabulatedModel

__all__ = [
    "AzimuthBinned",
    "BinnedModel",
    "ModelPerRun",
    "ParametricModel",
    "RateModel",
    "SplineRate",
    "TabulatedModel",
    "ZenithBinned",
    "ZenithInterpolated",
]
