"""The bootstrap over runs: a closed form, and the errors of the model beside it."""

import astropy.units as u
import numpy as np
import pytest
from stores import observations, options, plain_store

from gammapy_accmaker import fit_acceptance
from gammapy_accmaker.errors import InputError
from gammapy_accmaker.validation.bootstrap import bootstrap_error

CONFIG = options(
    "radial", "none", energy={"min": "0.2 TeV", "max": "20 TeV", "nbins_per_decade": 3}, offset_max="2 deg"
)
CONFIG["model"]["offset_bins"] = 3


def test_bootstrap_equals_poisson_errors_where_runs_are_alike():
    runs = observations(plain_store())
    energy = np.geomspace(0.4, 5, 5) * u.TeV
    lon = np.array([0.4, 1.0, 1.6])
    error = bootstrap_error(runs, CONFIG, energy, lon * u.deg, 0 * lon * u.deg, 1.0, n_bootstrap=60)
    model = fit_acceptance(runs, CONFIG).rate_model
    poisson = model.relative_error_grid(energy.value, lon, 0 * lon, 1.0)
    assert error.shape == poisson.shape
    # 8 runs and 60 refits leave the estimate itself uncertain; a rate between bins is smoother than one bin
    assert 0.3 < np.median(error / poisson) < 1.5
    assert np.all(error < 3 * poisson)


def test_bootstrap_needs_runs_and_refits():
    runs = observations(plain_store())
    grid = ([1] * u.TeV, [0] * u.deg, [0] * u.deg, 1.0)
    with pytest.raises(InputError, match="n_bootstrap: got 1"):
        bootstrap_error(runs, CONFIG, *grid, n_bootstrap=1)
    with pytest.raises(InputError, match="at least 2"):
        bootstrap_error(runs[:1], CONFIG, *grid)
