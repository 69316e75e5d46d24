"""Random effects that a residual structure makes undetermined, against the rank of a dense Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jaxmixed as jm
from jaxmixed.covariance import covariance_structure
from jaxmixed.errors import DesignError
from jaxmixed.formula import parse
from jaxmixed.frame import build_frame
from jaxmixed.residual_columns import residual_columns
from jaxmixed.residual_frame import residual_frame
from jaxmixed.residual_identifiability import RandomTerm, not_told_apart
from jaxmixed.residual_text import as_structure

Array = np.ndarray


def visits(times: int = 4, groups: int = 6, schools: int = 2) -> pd.DataFrame:
    """Groups at whole times, some with gaps, in schools."""
    rng = np.random.default_rng(7)
    data = pd.DataFrame(
        {
            "t": np.tile(np.arange(float(times)), groups),
            "id": np.repeat(np.arange(groups), times),
            "x": rng.standard_normal(times * groups),
        }
    )
    data["school"] = data.id % schools
    data["y"] = rng.standard_normal(len(data))
    return data.drop([2, 7] if times > 3 else []).reset_index(drop=True)


# Dense covariances of one group's rows, by their definitions


def exchangeable(p: Array, t: Array) -> Array:
    return p[0] * ((1 - p[1]) * np.eye(len(t)) + p[1])


def ar1(p: Array, t: Array) -> Array:
    return p[0] * p[1] ** np.abs(t[:, None] - t)


def toeplitz(p: Array, t: Array) -> Array:
    return p[0] * np.r_[1, p[1:]][np.abs(t[:, None] - t).astype(int)]


def unstructured(p: Array, t: Array) -> Array:
    full = np.zeros((4, 4))
    full[np.tril_indices(4)] = p
    full = full + np.tril(full, -1).T
    at = t.astype(int)
    return full[np.ix_(at, at)]


def by_time(p: Array, t: Array) -> Array:
    return np.diag(p[t.astype(int)])


def ante(p: Array, t: Array) -> Array:
    at = t.astype(int)
    steps = np.r_[0, np.cumsum(np.log(p[4:]))]
    sd = np.sqrt(p[:4])[at]
    return sd[:, None] * np.exp(-np.abs(steps[at][:, None] - steps[at])) * sd


STRUCTURES: dict[str, tuple[Callable[[Array, Array], Array], Array]] = {
    "cs(id)": (exchangeable, np.array([1.2, 0.3])),
    "ar1(t | id)": (ar1, np.array([1.2, 0.6])),
    "toep(t | id)": (toeplitz, np.array([1.2, 0.5, 0.3, 0.2])),
    "us(t | id)": (unstructured, np.array([1.5, 0.3, 1.2, 0.2, 0.5, 1.4, 0.1, 0.4, 0.6, 1.7])),
    "diag(t)": (by_time, np.array([1.5, 1.2, 1.4, 0.7])),
    "adh(t | id)": (ante, np.array([1.5, 1.2, 1.4, 0.7, 0.5, 0.6, 0.8])),
}

EFFECTS = {
    "(1 | id)": ("id", lambda d: np.ones((len(d), 1))),
    "(1 + t | id)": ("id", lambda d: np.column_stack([np.ones(len(d)), d.t])),
    "(0 + t | id)": ("id", lambda d: d[["t"]].to_numpy()),
    "(1 + x | id)": ("id", lambda d: np.column_stack([np.ones(len(d)), d.x])),
    "(0 + x | id)": ("id", lambda d: d[["x"]].to_numpy()),
    "(1 | school)": ("school", lambda d: np.ones((len(d), 1))),
}


def told_apart_densely(text: str, effects: str, data: pd.DataFrame) -> bool:
    """Whether the parts of the Jacobian of the dense V have ranks that add up."""
    function, p = STRUCTURES[text]
    label, columns = EFFECTS[effects]
    Z, level = columns(data), data[label].to_numpy()
    q = Z.shape[1]
    rows, cols = np.tril_indices(q)

    def random_part(g: Array) -> Array:
        G = np.zeros((q, q))
        G[rows, cols] = g
        G = G + np.tril(G, -1).T
        return (Z @ G @ Z.T) * (level[:, None] == level)

    def residual_part(own: Array) -> Array:
        V = np.zeros((len(data), len(data)))
        for _, at in data.groupby("id").indices.items():
            V[np.ix_(at, at)] = function(own, data.t.to_numpy()[at])
        return V

    def jacobian(part: Callable[[Array], Array], at: Array) -> Array:
        step = 1e-5 * np.eye(len(at))
        return np.stack([(part(at + s) - part(at - s)).ravel() / 2e-5 for s in step], axis=1)

    parts = jacobian(random_part, np.full(len(rows), 0.5)), jacobian(residual_part, p)
    ranks = [np.linalg.matrix_rank(own, tol=1e-6) for own in (*parts, np.hstack(parts))]
    return bool(ranks[2] == ranks[0] + ranks[1])


def random_term(effects: str, data: pd.DataFrame, structure: str = "unstructured") -> RandomTerm:
    label, columns = EFFECTS[effects]
    Z = columns(data)
    return RandomTerm(data[label].to_numpy(), Z, covariance_structure(structure, Z.shape[1]))


def design_of(residuals: Any, data: pd.DataFrame) -> Any:
    spec, formula = as_structure(residuals), parse("y ~ 1")
    own = residual_frame(spec, build_frame(formula, data, also=residual_columns(spec, formula)))
    assert own is not None
    return own.design


DATA = visits()


@pytest.mark.parametrize("text", STRUCTURES)
def test_terms_are_refused_exactly_where_the_dense_jacobian_loses_rank(text):
    design = design_of(text, DATA)
    for effects in EFFECTS:
        found = not_told_apart(design, [random_term(effects, DATA)])
        assert (found is None) == told_apart_densely(text, effects, DATA), effects


def test_both_answers_occur():
    answers = {(text, own): told_apart_densely(text, own, DATA) for text in STRUCTURES for own in EFFECTS}
    assert not answers["cs(id)", "(1 | id)"]
    assert not answers["us(t | id)", "(1 + t | id)"]
    assert not answers["toep(t | id)", "(1 | id)"]
    assert answers["ar1(t | id)", "(1 + t | id)"]
    assert answers["us(t | id)", "(0 + x | id)"]
    assert answers["cs(id)", "(1 | school)"]


def test_two_times_are_too_few_for_a_correlation_and_an_intercept():
    two, three = (visits(times) for times in (2, 3))
    assert not_told_apart(design_of("ar1(t | id)", two), [random_term("(1 | id)", two)]) == (0,)
    assert not_told_apart(design_of("ar1(t | id)", three), [random_term("(1 | id)", three)]) is None


def test_the_terms_at_fault_are_named_one_by_one():
    terms = [random_term(own, DATA) for own in ("(1 | school)", "(1 | id)", "(0 + x | id)")]
    assert not_told_apart(design_of("cs(id)", DATA), terms) == (1,)
    assert not_told_apart(design_of("ar1(t | id)", DATA), terms) is None


def test_weights_that_differ_within_groups_tell_a_common_correlation_from_an_intercept():
    design, term = design_of("cs(id)", DATA), random_term("(1 | id)", DATA)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(DATA))
    assert not_told_apart(design, [term], np.full(len(DATA), 2.0)) == (0,)
    assert not_told_apart(design, [term], weights) is None


def test_years_far_from_zero_change_no_answer():
    data = DATA.assign(t=DATA.t + 2000)
    Z = np.column_stack([np.ones(len(data)), data.t])
    term = RandomTerm(data.id.to_numpy(), Z, covariance_structure("unstructured", 2))
    assert not_told_apart(design_of("us(t | id)", data), [term]) == (0,)
    assert not_told_apart(design_of("ar1(t | id)", data), [term]) is None


def test_of_many_groups_some_are_looked_at():
    data = visits(groups=3000, schools=40)
    term = random_term("(1 | id)", data)
    assert not_told_apart(design_of("cs(id)", data), [term]) == (0,)
    assert not_told_apart(design_of("ar1(t | id)", data), [term]) is None


def test_a_model_whose_parts_cannot_be_told_apart_is_refused_with_their_names():
    with pytest.raises(DesignError) as caught:
        jm.mixed("y ~ x + (1 | school) + (t | id)", DATA, residuals="us(t | id)")
    message = str(caught.value)
    assert "the random effects (1 + t | id) and the residual structure Unstructured in t within id" in message
    assert "school" not in message
    assert "leave out the term" in message
