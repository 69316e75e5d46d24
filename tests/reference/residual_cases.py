"""The stored cases of nlme with residual covariance structures: reading, fitting, dense likelihoods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

import jaxmixed as jm
from jaxmixed.frame import build_frame
from tests.reference.cases import HERE, Case, Fitted, load_case, mixed_quietly
from tests.support.dense import Array, Block
from tests.support.dense_residuals import DenseResidualModel, Structure

FOLDER = "residuals"
CASE_IDS = tuple(path.name.removesuffix(".json") for path in sorted((HERE / FOLDER).glob("*.json")))

OURS: dict[str, Callable[..., Any]] = {
    "independent": jm.residuals.Independent,
    "exchangeable": jm.residuals.Exchangeable,
    "ar1": jm.residuals.AR,
    "ar2": lambda **columns: jm.residuals.AR(2, **columns),
    "ma1": jm.residuals.MA,
    "ma2": lambda **columns: jm.residuals.MA(2, **columns),
    "arma11": lambda **columns: jm.residuals.ARMA(1, 1, **columns),
    "car1": jm.residuals.Exponential,
    "exponential": jm.residuals.Exponential,
    "exponential_nugget": lambda **columns: jm.residuals.Exponential(nugget=True, **columns),
    "unstructured": jm.residuals.Unstructured,
}

ORACLE = {
    "ar1": "ar",
    "ar2": "ar",
    "ma1": "ma",
    "ma2": "ma",
    "arma11": "arma",
    "car1": "exponential",
    "exponential_nugget": "exponential",
}
"""Names of the oracle's structures where they differ from the cases'."""

RENAMED = {"ar1": {"phi": "phi1"}, "car1": {"phi": "rho"}}
"""Our names of parameters where they differ from the cases', by structure."""


@cache
def load(case_id: str) -> Case:
    """Read a case; visits are whole numbers, as `read_csv` makes them."""
    case = load_case(case_id, FOLDER)
    for column in {"occ", "week", "Days"} & set(case.data.columns):
        case.data[column] = case.data[column].astype("int64")
    return case


def is_structured(case: Case) -> bool:
    """Whether the residuals have a structure."""
    residual = case.spec["residual"]
    return residual["structure"] != "independent" or residual["variance_by"] is not None


def structure(case: Case) -> Any:
    """What `mixed(residuals=)` is given."""
    residual = case.spec["residual"]
    if not is_structured(case):
        return None
    columns = {"variance_by": residual["variance_by"]}
    if residual["structure"] != "independent":
        columns |= {"time": residual["time"], "group": residual["group"][0]}
    return OURS[residual["structure"]](**columns)


@cache
def fit(case_id: str) -> Fitted:
    """Fit a case once per process."""
    case = load(case_id)
    found, categories = mixed_quietly(case.formula, case.data, method=case.method, residuals=structure(case))
    return Fitted(case, found, categories)


def natural(case: Case) -> dict[str, float]:
    """The stored estimates under the names of `fit.residual_parameters`."""
    stored, kind = case.expected["residual"], case.spec["residual"]["structure"]
    renamed = RENAMED.get(kind, {})
    found = {renamed.get(name, name): value for name, value in stored.get("cor_params", {}).items()}
    if kind == "car1":  # phi^d = exp(-d / range)
        found["range"] = -1 / np.log(found["rho"])
    elif "range" in found:
        found["rho"] = np.exp(-1 / found["range"])
    if kind == "unstructured":
        times, corr = stored["times"], stored["corr"]
        pairs = [(i, j) for j in range(len(times)) for i in range(j)]
        found |= {f"corr[{times[i]},{times[j]}]": corr[i][j] for i, j in pairs}
    if stored.get("variance"):
        names = stored["variance"]["levels"]
        sds = stored["variance"]["sd"]
        found |= {f"sd[{name}]": sd for name, sd in zip(names, sds, strict=True)}
    return found


def dense(case: Case, parameters: Mapping[str, float], sigma: float) -> DenseResidualModel:
    """The model with n × n matrices, at natural parameters of its residuals."""
    frame = build_frame(case.formula, case.data)
    blocks = tuple(Block(np.asarray(group.Z), group.codes) for group in frame.groups)
    residual = case.spec["residual"]
    kind = residual["structure"]
    how = Structure(
        ORACLE.get(kind, kind),
        group=residual["group"][0] if kind != "independent" else None,
        time=residual["time"],
        variance_by=residual["variance_by"],
    )
    relative = how.relative(case.data.loc[frame.index], parameters, sigma)
    return DenseResidualModel(frame.y, np.asarray(frame.X), blocks, relative=relative)


def stored_covariances(case: Case) -> tuple[Array, ...]:
    """Covariances of the random effects, term by term."""
    return tuple(np.array(term["cov"]) for term in case.expected["varcorr"])
