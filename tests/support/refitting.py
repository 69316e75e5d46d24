"""Designs of several structures, responses drawn on them, and the engine that fits many of them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import pandas as pd

import jaxmixed as jm
from jaxmixed.diagnosis import TermLabel
from jaxmixed.likelihood import Method
from jaxmixed.precision import double_precision
from jaxmixed.refits import Refitter
from jaxmixed.responses import Responses, attach
from jaxmixed.statistics import SufficientStatistics
from tests.support.fits import quietly


class Design(NamedTuple):
    """A formula and its data; the response is only the first of many."""

    formula: str
    data: pd.DataFrame
    weights: str | None = None


def _sleepstudy() -> Design:
    return Design("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))


def _intercepts() -> Design:
    rng = np.random.default_rng(11)
    g = np.repeat(np.arange(12), rng.integers(2, 7, 12))
    x = rng.normal(size=len(g))
    y = 1 + x + rng.normal(size=12)[g] + rng.normal(size=len(g))
    return Design("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": g}))


def _continuous() -> Design:
    rng = np.random.default_rng(12)
    g = np.repeat(np.arange(10), 9)
    x = rng.normal(size=len(g))
    b = rng.normal(size=(10, 2))
    y = 1 + x + b[g, 0] + b[g, 1] * x + rng.normal(size=len(g))
    return Design("y ~ x + (x | g)", pd.DataFrame({"y": y, "x": x, "g": g}))


def _weighted() -> Design:
    formula, data, _ = _continuous()
    w = np.random.default_rng(13).uniform(0.2, 5.0, len(data))
    return Design(formula, data.assign(w=w), "w")


def _nested() -> Design:
    rng = np.random.default_rng(14)
    b = np.repeat(np.arange(24), 4)
    a = b // 4
    y = rng.normal(size=6)[a] + rng.normal(size=24)[b] + rng.normal(size=96)
    return Design("y ~ 1 + (1 | a / b)", pd.DataFrame({"y": y, "a": a, "b": b}))


def _crossed() -> Design:
    rng = np.random.default_rng(15)
    a, b = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    y = 2 + rng.normal(size=8)[a] + 0.5 * rng.normal(size=5)[b] + rng.normal(size=40)
    return Design("y ~ 1 + (1 | a) + (1 | b)", pd.DataFrame({"y": y, "a": a, "b": b}))


def _machines() -> Design:
    return Design("score ~ Machine + (Machine | Worker)", jm.datasets.load("machines"))


DESIGNS = {
    "sleepstudy": _sleepstudy,  # compressed: all groups alike
    "intercepts": _intercepts,  # one parameter
    "continuous": _continuous,  # no groups alike
    "weighted": _weighted,
    "nested": _nested,  # two levels of groups
    "crossed": _crossed,  # a root
    "machines": _machines,  # six parameters
}


@cache
def fitted(name: str, method: Method = "reml") -> jm.MixedResults:
    """Fit of a design's first response."""
    formula, data, weights = DESIGNS[name]()
    return quietly(formula, data, method=method, weights=weights)


@cache
def refitter(name: str, method: Method = "reml") -> Refitter:
    """Engine for further responses of a design."""
    fit = fitted(name, method)
    labels = tuple(
        TermLabel(term.group, term.names, term.frame_index, term.num_levels) for term in fit.estimates.terms
    )
    return Refitter(fit.state, labels, fit.frame.x_names, method=method)


@cache
def responses(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Responses (n, count) drawn from the fit; every fourth one without any effects of the groups."""
    fit, rng = fitted(name), np.random.default_rng(seed)
    frame, found = fit.frame, fit.estimates
    weights = np.ones(len(frame.X)) if frame.weights is None else frame.weights
    Y = (frame.X @ np.nan_to_num(found.beta))[:, None] + found.sigma * rng.standard_normal(
        (len(frame.X), count)
    ) / np.sqrt(weights)[:, None]
    for term in found.terms:
        group = next(own for own in frame.groups if own.label == term.group)
        sizes = (term.num_levels, len(term.names), count)
        effects = np.einsum("ab,mbB->maB", found.sigma * np.asarray(term.factor), rng.standard_normal(sizes))
        effects[..., ::4] = 0
        columns = [group.names.index(own) for own in term.names]
        Y += np.einsum("nq,nqB->nB", group.Z[:, columns], effects[group.codes])
    Y.setflags(write=False)
    return Y


def whole(shared: SufficientStatistics, own: Responses, model: int) -> SufficientStatistics:
    """Statistics of one of many responses, on the host."""
    with double_precision():
        one = jax.tree.map(lambda values: values[..., model], own)
        return jax.tree.map(np.asarray, attach(shared, one))
