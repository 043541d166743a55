"""A fit of the spline model, or an adaptation, that did not converge is said wherever one looks."""

import logging
from functools import partial

import pytest
from stores import full_store, observations, source_region

from gammapy_accmaker import AcceptanceBackgroundMaker, AcceptanceModel
from gammapy_accmaker.config import kinds
from gammapy_accmaker.models.spline import likelihood as run_likelihood
from gammapy_accmaker.validation.report import write_report

CONFIG = {"energy": {"min": "0.3 TeV", "max": "20 TeV"}, "observatory_location": None}


def fitted():
    store = full_store()
    runs = observations(store)[:3]
    return AcceptanceBackgroundMaker(CONFIG, exclusion=[source_region(store)]).fit(runs), runs


def test_a_fit_that_converged_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        maker, _ = fitted()
    assert "converge" not in caplog.text and "not converge" not in str(maker.model)
    assert not any("converged" in flag for flag in maker.run_table["FLAG"])


def test_a_fit_that_did_not_converge_is_said(monkeypatch, caplog, tmp_path, empty_pictures):
    monkeypatch.setattr(kinds, "fit_spline", partial(kinds.fit_spline, max_rounds=5))
    with caplog.at_level(logging.WARNING):
        maker, runs = fitted()
    said = [record.message for record in caplog.records if "did not converge" in record.message]
    assert len(said) == 1 and "pool more runs" in said[0] and "'norm'" in said[0]
    maker.model.write(tmp_path / "model.fits")
    assert "did not converge" in str(AcceptanceModel.read(tmp_path / "model.fits"))
    write_report(maker, runs, tmp_path / "report.html")
    assert "The fit did not converge" in (tmp_path / "report.html").read_text()


def test_an_adaptation_that_did_not_converge_is_said(monkeypatch, caplog):
    monkeypatch.setattr(run_likelihood, "_WEIGHT_ROUNDS", 1)
    monkeypatch.setattr(run_likelihood, "_WEIGHT_TOLERANCE", 0.0)
    with caplog.at_level(logging.WARNING):
        maker, runs = fitted()
        table = maker.run_table
        of_fit = caplog.text
        caplog.clear()
        maker.adapt(runs[0])
    assert all("not converged" in flag for flag in table["FLAG"])
    assert of_fit.count("did not converge") == 1 and "3 of 3 runs" in of_fit
    assert f"observation {runs[0].obs_id}" in caplog.text and "did not converge" in caplog.text


@pytest.mark.parametrize("kind", ["norm", "none"])
def test_fewer_effects_converge_too(kind, caplog):
    store = full_store()
    config = {**CONFIG, "run_effects": {"type": kind}}
    maker = AcceptanceBackgroundMaker(config, exclusion=[source_region(store)]).fit(observations(store)[:2])
    assert maker.model.rate_model.not_converged == "" and "converge" not in caplog.text
