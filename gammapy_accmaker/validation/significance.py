"""Mean and width of the significance of discs, by energy band: what they say of a model, where counts are enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gammapy_accmaker.camera.bins import offset
from gammapy_accmaker.validation.residuals import PIXELS_IN_DISC

LEAST_IN_DISC = 5.0  # counts expected in a disc; with fewer, the width is near 1 whatever the model says
_LEAST_DISCS = 10.0  # independent ones, for a mean and a width
_TOLERANCE = 0.1  # of mean and width, beyond their errors


@dataclass(frozen=True)
class Significance:
    """Mean and width of the significance of discs in an energy band, or in several."""

    counts: float
    in_disc: float  # counts expected
    n_independent: float  # discs
    mean: float
    width: float

    @classmethod
    def of(cls, scores: np.ndarray, counts: float, in_disc: float) -> Significance:
        """Of the scores of overlapping discs around all pixels."""
        scores = scores[np.isfinite(scores)]
        mean, width = (float(scores.mean()), float(scores.std())) if len(scores) else (np.nan, np.nan)
        return cls(counts, in_disc, len(scores) / PIXELS_IN_DISC, mean, width)

    @property
    def tells(self) -> bool:
        """Whether there are counts and discs enough."""
        return self.in_disc >= LEAST_IN_DISC and self.n_independent >= _LEAST_DISCS and np.isfinite(self.width)

    @property
    def mean_error(self) -> float:
        return self.width / np.sqrt(self.n_independent)

    @property
    def width_error(self) -> float:
        return self.width / np.sqrt(2 * self.n_independent)

    @property
    def is_good(self) -> bool:
        """Whether mean and width are those of a true model, to their errors and a tolerance."""
        mean_is_good = abs(self.mean) < _TOLERANCE + 2 * self.mean_error
        return mean_is_good and abs(self.width - 1) < _TOLERANCE + 2 * self.width_error

    def in_words(self) -> tuple[str, str]:
        if not self.tells:
            return "too few counts", ""
        return f"{self.mean:+.2f} ± {self.mean_error:.2f}", f"{self.width:.2f} ± {self.width_error:.2f}"


def together(found: list[Significance]) -> Significance | None:
    """Of all bands that tell something; None where none does."""
    found = [one for one in found if one.tells]
    if not found:
        return None
    weights = [one.n_independent for one in found]
    mean = np.average([one.mean for one in found], weights=weights)
    square = np.average([one.width**2 + one.mean**2 for one in found], weights=weights)
    counts, in_disc = sum(one.counts for one in found), min(one.in_disc for one in found)
    return Significance(counts, in_disc, sum(weights), float(mean), float(np.sqrt(square - mean**2)))


def significances(residuals) -> dict[str, list[Significance]]:
    """By band, in the camera frame and in the sky, of the stacked residuals."""
    counts, camera = residuals.counts.sum(1), residuals.camera_scores()
    in_sky = residuals.expected_in_sky_disc()
    return {
        "camera": [Significance.of(*one) for one in zip(camera, counts, residuals.expected_in_disc(), strict=True)],
        "sky": [Significance.of(*one) for one in zip(residuals.sky_scores(), counts, in_sky, strict=True)],
    }


def held_out(validation, residuals) -> dict[str, list[Significance]]:
    """The same of runs that were left out of the fit; each fold is a stack of its own in the camera frame."""
    n_pixels = np.isfinite(residuals.camera_scores()[0]).sum()
    inside = offset(residuals.fov.fov_lon, residuals.fov.fov_lat) < residuals.offset_max
    sky = [len(scores) for scores in residuals.sky_scores()]
    in_sky = residuals.expected_in_sky_disc()
    found: dict[str, list[Significance]] = {"camera": [], "sky": []}
    for row in validation.significance[validation.significance["CONFIG"] == validation.table["CONFIG"][-1]]:
        frame = str(row["FRAME"])
        k, counts = len(found[frame]), float(row["COUNTS"])
        if frame == "camera":
            n = validation.n_folds * n_pixels / PIXELS_IN_DISC
            in_disc = counts / validation.n_folds * PIXELS_IN_DISC / inside.sum()
        else:
            n, in_disc = sky[k] / PIXELS_IN_DISC, float(in_sky[k])
        found[frame].append(Significance(counts, in_disc, n, float(row["MEAN"]), float(row["WIDTH"])))
    return found
