"""Covariance structures other than unstructured against nlme's `lme` (Machines of Pinheiro & Bates 2000)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from tests.reference import tolerances

HERE = Path(__file__).parent
STRUCTURES = {
    "lme_machines_exch.ml": "exchangeable",
    "lme_machines_exch.reml": "exchangeable",
    "lme_machines_diag.reml": "independent",
    "lme_machines_ident.reml": "identity",
}
pytestmark = pytest.mark.reference


@cache
def stored_and_fitted(name: str) -> tuple[dict[str, Any], jm.MixedResults]:
    case = json.loads((HERE / "structures" / f"{name}.json").read_text(encoding="utf-8"))
    data = pd.read_csv(HERE / case["data"]["file"], dtype={"Worker": str})
    fit = jm.mixed(
        "score ~ Machine + (0 + Machine | Worker)",
        data,
        method=case["spec"]["method"].lower(),
        covariance={"Worker": STRUCTURES[name]},
    )
    return case["expected"], fit


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_log_likelihood_and_the_number_of_parameters_agree(name):
    expected, fit = stored_and_fitted(name)
    assert fit.llf == pytest.approx(expected["logLik"], rel=tolerances.GATE_LOGLIK)
    assert fit.num_params == expected["npar"]


@pytest.mark.parametrize("name", STRUCTURES)
def test_few_evaluations_of_the_likelihood_are_enough(name):
    _, fit = stored_and_fitted(name)
    assert 0 < fit.diagnostics.evaluations <= 12


@pytest.mark.parametrize("name", STRUCTURES)
def test_fixed_effects_and_their_standard_errors_agree(name):
    expected, fit = stored_and_fitted(name)
    reference = expected["fixef"]
    np.testing.assert_allclose(fit.params, reference["est"], atol=1e-6 * max(reference["se"]))
    np.testing.assert_allclose(fit.bse, reference["se"], rtol=1e-6)


@pytest.mark.parametrize("name", STRUCTURES)
def test_variance_parameters_their_standard_errors_and_limits_agree(name):
    expected, fit = stored_and_fitted(name)
    stored = expected["vc_se"]["natural"]
    table = fit.varcorr
    ours = table[["estimate", "std_error", "conf_low", "conf_high"]].to_numpy()
    theirs = [
        [row[key] for key in ("est", "se", "lower", "upper")] for row in stored if row["type"] != "corr"
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_the_common_correlation_and_its_limits_agree(method):
    expected, fit = stored_and_fitted(f"lme_machines_exch.{method}")
    (row,) = [row for row in expected["vc_se"]["natural"] if row["type"] == "corr"]
    columns = ["sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high"]
    ours = fit.varcorr.loc[fit.varcorr["effect2"].notna(), columns].to_numpy()[0]
    np.testing.assert_allclose(ours, [row[key] for key in ("est", "se", "lower", "upper")], rtol=1e-5)


def test_the_formulas_wrappers_ask_for_the_same_structures():
    _, fit = stored_and_fitted("lme_machines_exch.reml")
    data = pd.read_csv(HERE / "data" / "Machines.csv", dtype={"Worker": str})
    for wrapper, name in (
        ("cs", "lme_machines_exch"),
        ("diag", "lme_machines_diag"),
        ("homdiag", "lme_machines_ident"),
    ):
        expected, _ = stored_and_fitted(f"{name}.reml")
        wrapped = jm.mixed(f"score ~ Machine + {wrapper}(0 + Machine | Worker)", data)
        assert wrapped.llf == pytest.approx(expected["logLik"], rel=tolerances.GATE_LOGLIK)
    assert fit.random_terms[0].structure == "exchangeable"
