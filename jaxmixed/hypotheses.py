"""Hypotheses about the parameters of one model, and the tests that many fits of it can make of them.

`KINDS` lists the tests by name. A test is a function of the fits (estimates of all models, and those of the
reduced model where the test needs it) that gives one p-value for each; a further one is one more line there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np

from jaxmixed._distributions import chi2_p_values, f_p_value
from jaxmixed.coefficient_names import Coefficients
from jaxmixed.crossproducts import Reduction
from jaxmixed.denominators import kenward_roger
from jaxmixed.errors import DataError, DesignError, listed
from jaxmixed.fitted import Fitted
from jaxmixed.frame import ModelFrame
from jaxmixed.many_denominators import MOST, satterthwaite_of
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.nesting import nesting_of
from jaxmixed.nulls import LR_ROUNDING


@dataclass(frozen=True, slots=True, eq=False)
class Hypothesis:
    """What is tested: that some coefficients are zero, or that a smaller model is true.

    Attributes
    ----------
    label : str
    columns : tuple of int
        Fixed effects that are zero under it, by position.
    reduced : ModelFrame or None
        The model under it, where the test fits that, too.
    more_effects : int
        Random effects of a group that it sets to zero.
    """

    label: str
    columns: tuple[int, ...]
    reduced: ModelFrame | None = None
    more_effects: int = 0


class Evidence(NamedTuple):
    """Fits of many responses to one design.

    Attributes
    ----------
    full : ManyEstimates
    reduced : ManyEstimates or None
        Of the model under the hypothesis.
    reduction : Reduction
        The design of the full model.
    """

    full: ManyEstimates
    reduced: ManyEstimates | None
    reduction: Reduction


class KindOfTest(NamedTuple):
    """A kind of test.

    Attributes
    ----------
    title : str
    fits_reduced : bool
        Whether it needs fits of the model under the hypothesis.
    p_values : callable
        ``p_values(evidence, hypothesis)`` gives one for each model; NaN where there are no estimates.
    needs_reml : bool
        Whether it is defined for restricted maximum likelihood alone.
    """

    title: str
    fits_reduced: bool
    p_values: Callable[[Evidence, Hypothesis], np.ndarray]
    needs_reml: bool = False


def wald(evidence: Evidence, hypothesis: Hypothesis) -> np.ndarray:
    """P-values of b'C⁻¹b against the chi-squared distribution: of z against the normal for one coefficient.

    Parameters
    ----------
    evidence : Evidence
    hypothesis : Hypothesis

    Returns
    -------
    (m,) array
    """
    tested = list(hypothesis.columns)
    beta = evidence.full.beta[:, tested]
    cov = evidence.full.cov_beta[:, tested][:, :, tested]
    scale = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    p_values = np.full(len(beta), np.nan)
    good = np.isfinite(beta).all(axis=1) & np.isfinite(scale).all(axis=1) & (scale > 0).all(axis=1)
    scale, z = scale[good], beta[good] / scale[good]
    correlation = cov[good] / (scale[:, :, None] * scale[:, None, :])
    statistic = np.einsum("mi,mi->m", z, np.linalg.solve(correlation, z[:, :, None])[:, :, 0])
    p_values[good] = chi2_p_values(statistic, np.array(len(tested)))
    return p_values


def likelihood_ratio(evidence: Evidence, hypothesis: Hypothesis) -> np.ndarray:
    """P-values of likelihood ratios, by the distributions of :func:`jaxmixed.comparison.lrtest`.

    Parameters
    ----------
    evidence : Evidence
        With the reduced fits.
    hypothesis : Hypothesis

    Returns
    -------
    (m,) array
    """
    full, reduced = evidence.full, evidence.reduced
    if reduced is None:
        raise ValueError("a likelihood ratio needs the fits of the reduced model")
    df = full.num_params - reduced.num_params
    statistic = 2 * (full.llf - reduced.llf)
    zero = statistic <= LR_ROUNDING * np.maximum(1.0, np.abs(full.llf))
    p_values = chi2_p_values(np.where(zero, 0.0, statistic), df)
    if hypothesis.more_effects:  # one variance alone: an equal mixture of zero and chi2(1)
        p_values = np.where(df == 1, np.where(zero, 1.0, 0.5 * p_values), p_values)
    return p_values


def _kept(reduction: Reduction, columns: tuple[int, ...]) -> np.ndarray:
    """Rows of an identity matrix, of the tested coefficients among those that are not aliased."""
    keep = reduction.fixed.columns.keep.tolist()
    return np.eye(len(keep))[[keep.index(column) for column in columns]]


def satterthwaite(evidence: Evidence, hypothesis: Hypothesis) -> np.ndarray:
    """P-values of F tests with Satterthwaite's degrees of freedom: of t tests for one coefficient.

    Parameters
    ----------
    evidence : Evidence
    hypothesis : Hypothesis

    Returns
    -------
    (m,) array
    """
    full, tested = evidence.full, list(hypothesis.columns)
    p_values = np.full(len(full), np.nan)
    models = np.flatnonzero(full.fitted)
    L = _kept(evidence.reduction, hypothesis.columns)
    for start in range(0, len(models), MOST):
        own = models[start : start + MOST]
        reference = satterthwaite_of(full, own, evidence.reduction)
        statistic, df = reference.joint(L, full.beta[own][:, tested])
        p_values[own] = [f_p_value(F, len(L), m) for F, m in zip(statistic, df, strict=True)]
    return p_values


def kenward_roger_test(evidence: Evidence, hypothesis: Hypothesis) -> np.ndarray:
    """P-values of Kenward & Roger's F tests, one model after the other.

    Parameters
    ----------
    evidence : Evidence
        Of REML fits.
    hypothesis : Hypothesis

    Returns
    -------
    (m,) array
    """
    full, tested = evidence.full, list(hypothesis.columns)
    p_values = np.full(len(full), np.nan)
    L = _kept(evidence.reduction, hypothesis.columns)
    parts = full.split(full.standard)
    for model in np.flatnonzero(full.fitted):
        terms = [
            SimpleNamespace(covariance=covariance, standard=standard[model])
            for covariance, standard in zip(full.covariances, parts, strict=True)
        ]
        one: Any = SimpleNamespace(
            terms=terms,
            standard=full.standard[model],
            residual=None,
            rank=int(full.rank[model]),
            sigma=float(full.sigma[model]),
        )
        reference = kenward_roger(one, evidence.reduction.compact)
        statistic, df = reference.joint(L, full.beta[model, tested])
        p_values[model] = f_p_value(statistic, len(L), df)
    return p_values


KINDS = {
    "wald": KindOfTest("Wald test (normal, chi-squared)", False, wald),
    "satterthwaite": KindOfTest("F test with Satterthwaite's degrees of freedom", False, satterthwaite),
    "kenward-roger": KindOfTest("Kenward-Roger F test", False, kenward_roger_test, needs_reml=True),
    "lr": KindOfTest("likelihood-ratio test", True, likelihood_ratio),
}
"""The kinds of tests, by the names that users call them."""


def kind_of(kind: Any) -> KindOfTest:
    """The kind of test with a name.

    Raises
    ------
    DataError
        If there is none.

    Examples
    --------
    >>> kind_of("lr").title
    'likelihood-ratio test'
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"kind={kind!r} is no test; choose one of {', '.join(map(repr, KINDS))}")
    return KINDS[kind]


def coefficients_hypothesis(frame: ModelFrame, test: Any, kind: KindOfTest) -> Hypothesis:
    """The hypothesis that coefficients, named one by one or by their terms, are zero.

    Parameters
    ----------
    frame : ModelFrame
    test : str, list of str, or None
        None stands for the only coefficient beside the intercept.
    kind : KindOfTest

    Returns
    -------
    Hypothesis

    Raises
    ------
    DataError
        Naming what the model does not have, and what it has.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> frame = build_frame("y ~ f", {"y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "f": list("aabbcc")})
    >>> coefficients_hypothesis(frame, "f", KINDS["wald"]).columns
    (1, 2)
    """
    if test is None:
        names = [name for name, term in zip(frame.x_names, frame.x_assign, strict=True) if term > 0]
        if len(names) != 1:
            raise DataError(f"test= must say what is tested: {_choices(frame)}")
        test = names[0]
    given = [test] if isinstance(test, str) else test
    good = isinstance(given, list | tuple) and given and all(isinstance(name, str) for name in given)
    if not good:
        raise DataError(f"test={test!r} must be a coefficient or a list of them: {_choices(frame)}")
    coefficients = Coefficients.of(frame)
    columns: dict[int, None] = {}
    for name in given:
        if name in coefficients.exact:
            found: tuple[int, ...] = (coefficients.position(name),)
        else:
            found = coefficients.terms.get(name, ())
        if not found:
            raise DataError(
                f"test={test!r}: the model has no fixed effect {name!r}; choose {_choices(frame)}"
            )
        columns.update(dict.fromkeys(found))
    tested = tuple(sorted(columns))
    reduced = _without(frame, tested) if kind.fits_reduced else None
    return Hypothesis(", ".join(given), tested, reduced)


def nested_hypothesis(frame: ModelFrame, smaller: ModelFrame, kind: KindOfTest, text: str = "") -> Hypothesis:
    """The hypothesis that a smaller model of the same rows is true.

    Parameters
    ----------
    frame, smaller : ModelFrame
    kind : KindOfTest
    text : str, optional
        What the user wrote; by default the smaller model's formula.

    Returns
    -------
    Hypothesis

    Raises
    ------
    DataError
        If the models do not use the same rows.
    DesignError
        If it is no special case, or the kind of test cannot compare the two.

    Examples
    --------
    >>> from jaxmixed.frame import build_frame
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0, 5.0, 9.0], "x": [1, 2, 1, 3, 2, 1], "g": [1, 1, 2, 2, 3, 3]}
    >>> large, small = build_frame("y ~ x + (1 | g)", data), build_frame("y ~ x", data)
    >>> nested_hypothesis(large, small, KINDS["lr"]).more_effects
    1
    """
    text = text or smaller.formula.text
    if not np.array_equal(frame.kept, smaller.kept):
        raise DataError(
            f"test={text!r} uses {len(smaller.y)} rows and the model {len(frame.y)}, because columns have"
            " missing values; drop these rows first"
        )
    nesting = nesting_of(_unfitted(smaller), _unfitted(frame))
    if nesting.obstacle:
        raise DesignError(f"test={text!r} is no special case of the model: {nesting.obstacle}")
    columns = tuple(j for j, name in enumerate(frame.x_names) if name not in smaller.x_names)
    same_random = len(smaller.groups) == len(frame.groups) and nesting.more_effects == 0
    if not kind.fits_reduced and not (
        same_random and len(columns) + len(smaller.x_names) == len(frame.x_names)
    ):
        raise DesignError(
            f"test={text!r} differs from the model by more than coefficients, which a {kind.title} cannot"
            ' test; use kind="lr"'
        )
    return Hypothesis(text, columns, smaller if kind.fits_reduced else None, nesting.more_effects)


def _choices(frame: ModelFrame) -> str:
    """What can be tested, for an error message."""
    terms = [label for label in frame.term_labels if label not in frame.x_names]
    return f"coefficients {listed(frame.x_names)}" + (f"; terms {listed(terms)}" if terms else "")


def _without(frame: ModelFrame, columns: tuple[int, ...]) -> ModelFrame:
    """The frame without some of its fixed effects."""
    others = [j for j in range(len(frame.x_names)) if j not in columns]
    return replace(
        frame,
        X=np.ascontiguousarray(frame.X[:, others]),
        x_names=tuple(frame.x_names[j] for j in others),
        x_assign=tuple(frame.x_assign[j] for j in others),
    )


def _unfitted(frame: ModelFrame) -> Fitted:
    """What a comparison needs of a fit, without one."""
    terms = [
        SimpleNamespace(
            frame_index=i,
            structure=group.structure,
            covariance=group.structure,
            group=group.label,
            names=group.names,
        )
        for i, group in enumerate(frame.groups)
    ]
    estimates = SimpleNamespace(beta=np.zeros(len(frame.x_names)), terms=terms)
    return cast(Fitted, SimpleNamespace(frame=frame, estimates=estimates))
