"""Reading of the stored cases, and the fits of jaxmixed that are compared with them."""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jaxmixed as jm

HERE = Path(__file__).parent
CASE_IDS = tuple(path.name.removesuffix(".json") for path in sorted((HERE / "cases").glob("*.json")))

_BAR = re.compile(r"\s*\+\s*\([^()]*\|[^()]*\)")


@dataclass(frozen=True)
class Case:
    """One stored model: the data as R read them, the call, and R's results."""

    id: str
    data: pd.DataFrame
    spec: dict[str, Any]
    expected: dict[str, Any]
    tags: tuple[str, ...]

    @property
    def formula(self) -> str:
        """The formula with Python's operators where R's differ."""
        return self.spec["formula_py"] or self.spec["formula"]

    @property
    def formula_without_bars(self) -> str:
        return _BAR.sub("", self.formula)

    @property
    def method(self) -> str:
        return self.spec["method"].lower()

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `jaxmixed.mixed` besides formula and data."""
        optional = {key: self.spec[key] for key in ("weights", "offset", "contrasts") if self.spec[key]}
        return {"method": self.method, **optional}

    def has(self, quantity: str) -> bool:
        return self.expected.get(quantity) is not None


@dataclass(frozen=True)
class Fitted:
    """A case with its fit and the categories of the warnings that the fit gave."""

    case: Case
    fit: Any
    warnings: tuple[type[Warning], ...] = field(default=())


@cache
def read_data(file: str) -> pd.DataFrame:
    """Read a data file; columns that R's file quotes stay text, an empty field is a missing value."""
    path = HERE / file
    raw = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    quoted = _quoted_columns(path)
    for column in raw.columns:
        if column not in quoted:
            raw[column] = raw[column].astype("float64")
    return raw


@cache
def load_case(case_id: str, folder: str = "cases") -> Case:
    """Read a case and its data; grouping columns as text, factors with the stored order of levels."""
    stored = json.loads((HERE / folder / f"{case_id}.json").read_text(encoding="utf-8"))
    spec = stored["spec"]
    data = read_data(stored["data"]["file"]).copy()
    assert len(data) == stored["data"]["nrow"]
    for column in spec["grouping"]:
        if data[column].dtype == "float64":
            data[column] = data[column].astype("int64").astype(str)
    for column, levels in spec["categorical"].items():
        data[column] = pd.Categorical(data[column], categories=levels)
    return Case(stored["id"], data, spec, stored["expected"], tuple(stored["tags"]))


def mixed_quietly(
    formula: str, data: pd.DataFrame, **arguments: Any
) -> tuple[Any, tuple[type[Warning], ...]]:
    """Fit, and return the categories of its warnings beside the fit: a test asserts which they are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit = jm.mixed(formula, data, **arguments)
    return fit, tuple(warning.category for warning in caught)


@cache
def fit_case(case_id: str) -> Fitted:
    """Fit a case once per process."""
    case = load_case(case_id)
    fit, categories = mixed_quietly(case.formula, case.data, **case.arguments)
    return Fitted(case, fit, categories)


def with_quantity(quantity: str) -> list[str]:
    """Cases that store a quantity."""
    return [case_id for case_id in CASE_IDS if load_case(case_id).has(quantity)]


def our_label(fitted: Fitted, label: str) -> str:
    """Our label of a group that lme4 calls `label`: lme4 writes (1 | a/b) as b:a, we write a:b."""
    parts = sorted(label.split(":"))
    matches = [ours for ours in fitted.fit.ngroups if sorted(ours.split(":")) == parts]
    assert len(matches) == 1, f"{label} in {list(fitted.fit.ngroups)}"
    return matches[0]


def our_levels(label: str, ours: str, levels: list[str]) -> list[str]:
    """Names of lme4's levels under our label of the same group."""
    theirs, parts = label.split(":"), ours.split(":")
    if theirs == parts:
        return levels
    order = [theirs.index(part) for part in parts]
    return [":".join(np.array(level.split(":"))[order]) for level in levels]


def covariance_of(fitted: Fitted, group: str, names: list[str]) -> np.ndarray:
    """Our covariance matrix of the named effects of a group (one of lme4's terms), from all our terms."""
    label = our_label(fitted, group)
    for term in fitted.fit.random_terms:
        if term.group == label and set(names) <= set(term.names):
            return term.cov.loc[names, names].to_numpy(dtype=float)
    raise AssertionError(f"no term {names} for {label} in {fitted.fit.random_terms}")


def varcorr_row(varcorr: pd.DataFrame, group: str, effect: str | None, effect2: str | None) -> pd.Series:
    """The row of `varcorr` for a variance, a covariance (in either order), or the residual variance."""
    rows = varcorr[varcorr["group"] == group]
    if effect is not None:
        pairs = [{_text(a), _text(b)} for a, b in zip(rows["effect"], rows["effect2"], strict=True)]
        rows = rows[[pair == {effect, effect2} for pair in pairs]]
    assert len(rows) == 1, f"{group}, {effect}, {effect2}: {len(rows)} rows"
    return rows.iloc[0]


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _quoted_columns(path: Path) -> set[str]:
    """Columns whose first value stands in quotes or is not a number."""
    head = pd.read_csv(path, dtype=str, keep_default_na=False, nrows=50, quoting=3)
    columns = [name.strip('"') for name in head.columns]
    return {
        name
        for name, values in zip(columns, head.to_numpy().T, strict=True)
        if any(value.startswith('"') or value[:1].isalpha() for value in values)
    }
