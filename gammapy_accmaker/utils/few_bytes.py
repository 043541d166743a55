"""Numbers in as few bytes as hold them."""

from __future__ import annotations

import numpy as np


def in_few_bytes(values: np.ndarray) -> np.ndarray:
    """Whole numbers >= 0 in the smallest type that holds them: of thousands of runs these are what takes the memory.

    Others have four bytes.
    """
    whole = values.astype(np.int64)
    if (whole != values).any():
        return values.astype(np.float32)
    return whole.astype(np.min_scalar_type(whole.max(initial=0)))
