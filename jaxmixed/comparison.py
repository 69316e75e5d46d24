"""Comparing fits: likelihood-ratio tests, the test against the linear model, information criteria.

A variance that a test sets to zero lies on the boundary of its range, where the likelihood ratio has a
mixture of chi-squared distributions: for one more random effect, which brings one variance and r covariances,
½χ²(r) + ½χ²(r + 1) (Self & Liang 1987, JASA 82, 605-610; Stram & Lee 1994, Biometrics 50, 1171-1177).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from jaxmixed._distributions import chi2_p_value
from jaxmixed.covariance import STRUCTURES, Covariance
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, printable
from jaxmixed.formatting import counted, p_phrase, wrapped
from jaxmixed.nulls import NullDistribution, likelihood_ratios, simulated_null
from jaxmixed.relationship import PROPORTIONAL

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame
    from jaxmixed.relationship import Relationship

CONSERVATIVE = "the LR test is conservative: it tests variances at their boundary, zero."
UNDETERMINED = (
    "the LR test is approximate: without its variance a kernel has no parameters; "
    "lrtest(a, b, simulate=1000) makes no such approximation."
)
_SPAN_TOLERANCE = 1e-7
# Structures that a covariance matrix of the same effects may take as a special case of the key.
_SPECIAL_CASES = {
    "unstructured": {"unstructured", "independent", "identity", "exchangeable"},
    "independent": {"independent", "identity"},
    "exchangeable": {"exchangeable", "identity"},
    "identity": {"identity"},
}


class Fit(Protocol):
    """What a comparison needs of a fit; a simulated one also its reduced data."""

    @property
    def frame(self) -> ModelFrame:
        """The data as the model saw them."""

    @property
    def estimates(self) -> Estimates:
        """The estimates."""

    @property
    def state(self) -> Any:
        """The reduced data."""


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodRatioTest:
    """A likelihood-ratio test of two nested models.

    Parameters
    ----------
    statistic
        Twice the difference of the log-likelihoods; 0 where the difference is rounding.
    df
        Difference in the number of parameters.
    p_value
        Tail area under ``distribution``.
    distribution
        ``"chi2(k)"``, ``"chibar2(01)"`` (an equal mixture of zero and chi2(1)), ``"0.5 chi2(k-1) + 0.5
        chi2(k)"``, or ``"simulated"``.
    note
        What to know about the distribution; empty when there is nothing to say.
    table
        The two models, the smaller first: formula, number of parameters, log-likelihood, AIC, BIC.
    null
        The simulated null distribution, where one was asked for.
    """

    statistic: np.float64
    df: int
    p_value: np.float64
    distribution: str
    note: str
    table: pd.DataFrame
    null: NullDistribution | None = None

    def __str__(self) -> str:
        lines = ["Likelihood-ratio test"]
        for role, (_, row) in zip(("smaller", "larger "), self.table.iterrows(), strict=True):
            lines.append(wrapped(printable(row["formula"]), first=f"  {role}  ", indent="           "))
            lines.append(
                f"           log likelihood {row['llf']:.6f}, {row['num_params']} parameters, AIC"
                f" {row['aic']:.4f}"
            )
        name = self.distribution if self.null is None else "LR"
        lines.append(f"{name} = {self.statistic:.4f}, {p_phrase(float(self.p_value))}")
        return "\n".join([*lines, *([wrapped(f"Note: {self.note}")] if self.note else [])])

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class LinearModelTest:
    """Test of all random effects at once; the fields are those of `LikelihoodRatioTest`."""

    statistic: np.float64
    df: int
    p_value: np.float64
    distribution: str
    note: str


def linear_model_test(estimates: Estimates) -> LinearModelTest | None:
    """Likelihood-ratio test against the linear model fitted by the same criterion; None for a linear model.

    With one variance parameter the distribution is the mixture of zero and chi2(1); otherwise chi2(k), which
    is conservative.
    """
    k = len(estimates.theta)
    if k == 0:
        return None
    statistic = _statistic(estimates.linear_llf, estimates.llf) if estimates.theta.any() else 0.0
    if k == 1:
        p_value = 1.0 if statistic <= 0 else 0.5 * chi2_p_value(statistic, 1)
        return LinearModelTest(np.float64(statistic), 1, np.float64(p_value), "chibar2(01)", "")
    p_value = chi2_p_value(statistic, k)
    note = UNDETERMINED if any(term.covariance.natural_names for term in estimates.terms) else CONSERVATIVE
    return LinearModelTest(np.float64(statistic), k, np.float64(p_value), f"chi2({k})", note)


def lrtest(
    a: Fit,
    b: Fit,
    *,
    mixture: bool = False,
    simulate: int | None = None,
    seed: int | None = None,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> LikelihoodRatioTest:
    """Likelihood-ratio test of two nested models, in either order.

    Parameters
    ----------
    a, b : MixedResults
        Fits to the same rows by the same method. Under REML their fixed effects must be the same.
    mixture : bool
        For a model with exactly one more random effect, which brings a variance and covariances (k
        parameters): use the mixture of chi2(k - 1) and chi2(k) instead of chi2(k), which is conservative and
        what Stata prints. One variance alone always has its mixture, ``chibar2(01)``.
    simulate : int, optional
        Take the p-value from the likelihood ratios of so many responses drawn from the smaller model, to
        which both models are fitted: right also where no chi-squared distribution is (several variances at
        their boundary, few groups). `null` of the result holds them.
    seed : int, optional
        Of the simulated responses, non-negative; None takes a fresh one, which ``null.seed`` tells.
    devices, mesh, progress
        As for `MixedResults.bootstrap`.

    Returns
    -------
    LikelihoodRatioTest

    Raises
    ------
    DataError
        If the fits do not use the same rows, response, weights or method.
    DesignError
        If the models are not nested, or are REML fits with different fixed effects.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> slope = jm.mixed("Reaction ~ Days + (Days | Subject)", data)
    >>> intercept = jm.mixed("Reaction ~ Days + (1 | Subject)", data)
    >>> test = jm.lrtest(intercept, slope)
    >>> test.distribution, round(float(test.statistic), 2)
    ('chi2(2)', 42.84)
    >>> float(jm.lrtest(intercept, slope, simulate=99, seed=1).p_value)
    0.01
    """
    _require_fits((a, b))
    _require_same_data(a, b)
    small, large = (a, b) if a.estimates.num_params <= b.estimates.num_params else (b, a)
    require_same_criterion(small, large)
    df = large.estimates.num_params - small.estimates.num_params
    if df == 0:
        raise DesignError(
            f"both models have {small.estimates.num_params} parameters, so neither is a special case of the"
            " other; compare them by AIC or BIC: jm.compare(a, b)"
        )
    nesting = nesting_of(small, large)
    if nesting.obstacle:
        raise DesignError(
            f"the models are not nested: {nesting.obstacle}; compare them by AIC or BIC: jm.compare(a, b)"
        )
    test = _test(small, large, nesting.more_effects, mixture)
    if simulate is None:
        if seed is not None:
            raise DataError("seed= is that of simulated responses; give their number: simulate=999")
        return test
    null = simulated_null(small, large, simulate, seed, devices=devices, mesh=mesh, progress=progress)
    return _with_null(test, null)


def _with_null(test: LikelihoodRatioTest, null: NullDistribution) -> LikelihoodRatioTest:
    """The test with the p-value of its simulated null distribution."""
    low, high = null.conf_int()
    usual = p_phrase(float(test.p_value))
    note = (
        f"{counted(null.n_ok, 'response')} simulated from the smaller model (seed {null.seed}); 95%"
        f" Monte-Carlo limits of the p-value {low:.4f} to {high:.4f}; by {test.distribution} {usual}."
    )
    return replace(test, p_value=np.float64(null.p_value), distribution="simulated", note=note, null=null)


def _test(small: Fit, large: Fit, more_effects: int, mixture: bool) -> LikelihoodRatioTest:
    statistic = _statistic(small.estimates.llf, large.estimates.llf)
    df = large.estimates.num_params - small.estimates.num_params
    df_random = len(large.estimates.theta) - len(small.estimates.theta)
    distribution, note = f"chi2({df})", ""
    p_value = chi2_p_value(statistic, df)
    if more_effects > 0 and (df == 1 or (more_effects == 1 and mixture)):
        p_value = 1.0 if statistic <= 0 else 0.5 * chi2_p_value(statistic, df - 1) + 0.5 * p_value
        distribution = "chibar2(01)" if df == 1 else f"0.5 chi2({df - 1}) + 0.5 chi2({df})"
    elif more_effects > 0:
        has_kernel = any(term.covariance.natural_names for term in large.estimates.terms)
        note = UNDETERMINED if has_kernel and df_random > 1 else CONSERVATIVE
        if more_effects == 1:
            note += f" With mixture=True its distribution is 0.5 chi2({df - 1}) + 0.5 chi2({df})."
    if mixture and more_effects != 1 and distribution != "chibar2(01)":
        raise DesignError(
            f"mixture=True is for a model with exactly one more random effect; here there are {more_effects}"
            f" more ({df_random} variance parameters): leave mixture out"
        )
    if statistic < 0:
        note = "the larger model has the lower likelihood, so at least one of the fits has not converged."
        warnings.warn(f"lrtest: {note}", ConvergenceWarning, stacklevel=4)
    return LikelihoodRatioTest(
        np.float64(statistic), df, np.float64(p_value), distribution, note, _model_rows([small, large])
    )


def compare(*fits: Fit) -> pd.DataFrame:
    """Table of fits to the same data, from the fewest parameters to the most.

    Parameters
    ----------
    *fits : MixedResults
        Two or more fits to the same rows by the same method.

    Returns
    -------
    pandas.DataFrame
        A row per model, in order of its number of parameters; the index is the position among the arguments,
        from 1. Columns ``formula``, ``method``, ``num_params``, ``llf``, ``deviance``, ``aic``, ``bic``, and
        the likelihood-ratio test against the row above where the two are nested: ``statistic``, ``df``,
        ``p_value``, ``distribution``.

    Raises
    ------
    DataError
        If the fits do not use the same rows, response, weights or method.
    DesignError
        If they are REML fits with different fixed effects.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> fits = [jm.mixed(f"Reaction ~ Days + ({t} | Subject)", data) for t in ("1", "Days")]
    >>> jm.compare(*fits)["aic"].round(1).tolist()
    [1794.5, 1755.6]
    """
    _require_fits(fits)
    if len(fits) < 2:
        raise DataError(f"compare() needs two or more fits, not {len(fits)}")
    for other in fits[1:]:
        _require_same_data(fits[0], other)
        require_same_criterion(fits[0], other)
    order = sorted(range(len(fits)), key=lambda i: fits[i].estimates.num_params)
    table = _model_rows([fits[i] for i in order])
    table.index = pd.Index([i + 1 for i in order], name="model")
    tests: list[tuple[float, float, float, str]] = [(np.nan, np.nan, np.nan, "")]
    for lower, upper in pairwise(order):
        small, large = fits[lower], fits[upper]
        nesting = nesting_of(small, large)
        if small.estimates.num_params == large.estimates.num_params or nesting.obstacle:
            tests.append((np.nan, np.nan, np.nan, ""))
            continue
        test = _test(small, large, nesting.more_effects, mixture=False)
        tests.append((test.statistic, test.df, test.p_value, test.distribution))
    columns = ("statistic", "df", "p_value", "distribution")
    return table.assign(**{name: [test[j] for test in tests] for j, name in enumerate(columns)})


def _model_rows(fits: list[Fit]) -> pd.DataFrame:
    rows = []
    for fit in fits:
        found = fit.estimates
        rows.append(
            {
                "formula": fit.frame.formula.text,
                "method": found.method,
                "num_params": found.num_params,
                "llf": found.llf,
                "deviance": found.deviance,
                "aic": found.deviance + 2 * found.num_params,
                "bic": found.deviance + np.log(found.nobs) * found.num_params,
            }
        )
    return pd.DataFrame(rows)


def _statistic(llf_small: float, llf_large: float) -> float:
    """Twice the difference of the log-likelihoods, 0 where it is only numerical error."""
    return float(likelihood_ratios(float(llf_small), float(llf_large)))


def _require_fits(fits: tuple[Any, ...]) -> None:
    for fit in fits:
        if not (hasattr(fit, "frame") and hasattr(fit, "estimates")):
            raise DataError(f"a comparison needs results of mixed(), not {type(fit).__name__}")


def _require_same_data(a: Fit, b: Fit) -> None:
    one, two = a.frame, b.frame
    hint = "fit both models to the same rows, e.g. after dropping rows with missing values of all variables"
    if len(one.y) != len(two.y):
        raise DataError(
            f"the fits use {len(one.y)} and {len(two.y)} rows, so their likelihoods cannot be compared;"
            f" {hint}"
        )
    if not np.array_equal(one.y, two.y):
        names = {printable(one.response_name), printable(two.response_name)}
        what = (
            f"responses ({' and '.join(sorted(names))})"
            if len(names) > 1
            else "values of the response, or their rows in another order"
        )
        raise DataError(f"the fits have different {what}, so their likelihoods cannot be compared; {hint}")
    for what, first, second in (("weights", one.weights, two.weights), ("offsets", one.offset, two.offset)):
        same = first is second or (first is not None and second is not None and np.array_equal(first, second))
        if not same and not (what == "offsets" and _both_zero(first, second)):
            raise DataError(
                f"the fits have different {what}, so a likelihood ratio would not compare their effects alone"
            )


def _both_zero(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return all(values is None or not values.any() for values in (first, second))


def require_same_criterion(a: Fit, b: Fit) -> None:
    """Refuse fits whose likelihoods are not of one kind.

    Parameters
    ----------
    a, b : Fit

    Raises
    ------
    DataError
        If their methods differ.
    DesignError
        If they are REML fits with different fixed effects.
    """
    one, two = a.estimates, b.estimates
    if one.method != two.method:
        raise DataError(
            f"one fit is {one.method.upper()} and the other {two.method.upper()}; their criteria cannot be"
            ' compared: refit both with method="ml"'
        )
    if one.method == "reml" and not _same_columns(a, b):
        raise DesignError(
            "the fits are REML fits with different fixed effects, and restricted likelihoods of different"
            ' fixed effects cannot be compared: refit both with method="ml"'
        )


def _kept_columns(fit: Fit) -> np.ndarray:
    """Fixed-effects columns without the dropped ones."""
    return np.asarray(fit.frame.X)[:, ~np.isnan(fit.estimates.beta)]


def _same_columns(a: Fit, b: Fit) -> bool:
    """Whether two fits have the same fixed-effects columns, in any order."""
    if a.frame.X is b.frame.X:
        return True
    one, two = _kept_columns(a), _kept_columns(b)
    if one.shape != two.shape:
        return False
    return all((two == one[:, [j]]).all(axis=0).any() for j in range(one.shape[1]))


@dataclass(frozen=True, slots=True)
class _Nesting:
    """Why a model is no special case of another ("" if it is), and how many random effects the other adds.

    Effects count as dimensions of the random effects of a group: a random intercept of ``g`` and one of
    ``g:f`` give full variance to all levels of f, so ``(0 + f | g)`` has no effect more than the two of them,
    and nothing is tested on the boundary.
    """

    obstacle: str
    more_effects: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """A random-effects term on the rows: its grouping, its effects and their structure.

    ``parts`` holds for every grouping column the number of its level in each level of the grouping.
    """

    columns: tuple[str, ...]
    parts: tuple[np.ndarray, ...]
    codes: np.ndarray
    Z: np.ndarray
    structure: str | Covariance
    relationship: Relationship | None = None


def _terms(fit: Fit) -> list[_Term]:
    terms = []
    for term in fit.estimates.terms:
        group = fit.frame.groups[term.frame_index]
        parts = fit.frame.encoding.groups[group.columns].parts()
        Z, related = np.asarray(group.Z), group.relationship
        structure = term.structure if term.structure in STRUCTURES else term.covariance
        terms.append(_Term(group.columns, parts, group.codes, Z, structure, related))
    return terms


def nesting_of(small: Fit, large: Fit) -> _Nesting:
    """How one model is a special case of another, or why it is none.

    Parameters
    ----------
    small, large : Fit

    Returns
    -------
    _Nesting
        With `obstacle`, empty where they are nested, and `more_effects`, the random effects that only the
        larger one has.
    """
    wide, narrow = _kept_columns(large), _kept_columns(small)
    outside = _outside_span(narrow, wide)
    if outside.any():
        names = np.asarray(small.frame.x_names)[~np.isnan(small.estimates.beta)][outside]
        return _Nesting(f"the larger model lacks the fixed effect {printable(names[0])}")
    available, contained = _terms(large), []
    for estimate, term in zip(small.estimates.terms, _terms(small), strict=True):
        found = _as_special_case(term, available)
        if found is None:
            group, effects = printable(estimate.group), printable(", ".join(estimate.names))
            return _Nesting(f"the larger model has no random term for {group} that contains ({effects})")
        contained.append(found)
    return _Nesting("", _num_effects(available) - _num_effects(contained))


def _num_effects(terms: list[_Term]) -> int:
    """Dimension of the random effects of a group, summed over the groupings."""
    total, rest = 0, terms
    while rest:
        alike = [term for term in rest if _same_grouping(rest[0], term)]
        rest = [term for term in rest if not _same_grouping(rest[0], term)]
        total += _basis(np.column_stack([term.Z for term in alike])).shape[1]
    return total


def _same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two groupings divide the rows alike, whatever their labels."""
    if a is b:
        return True
    if a.max() != b.max():
        return False
    image = np.full(a.max() + 1, -1, dtype=np.int64)
    image[a] = b
    return bool((image[a] == b).all())


def _same_grouping(term: _Term, other: _Term) -> bool:
    """Whether two terms divide the rows alike and relate the groups alike."""
    own, theirs = term.relationship, other.relationship
    if not _same_partition(term.codes, other.codes):
        return False
    if own is None or theirs is None:
        return own is theirs
    image = np.empty(own.recorded, dtype=np.int64)
    image[term.codes] = other.codes
    difference = own.correlation - theirs.correlation[np.ix_(image, image)]
    return bool(np.abs(difference).max() <= PROPORTIONAL)


def _as_special_case(term: _Term, available: list[_Term]) -> _Term | None:
    """The term with the grouping of an available term that has it as a special case; None if none has."""
    candidates = [(found, other) for other in available if (found := _regrouped(term, other)) is not None]
    for found, other in candidates:
        if _is_special_case(found.Z, found.structure, other.structure, other.Z):
            return found
    # Independent effects may lie in separate terms of the larger model.
    same = [other for found, other in candidates if found is term]
    divides = term.structure in ("independent", "identity") and term.Z.shape[1] > 1
    contained = divides and all(
        any(_is_special_case(term.Z[:, [j]], term.structure, other.structure, other.Z) for other in same)
        for j in range(term.Z.shape[1])
    )
    return term if contained else None


def _regrouped(term: _Term, other: _Term) -> _Term | None:
    """The term as one with the grouping of another, which must be the same or a coarser one; None otherwise.

    Effects that are independent between the levels of g:f are effects of g: their products with the dummy
    variables of f, independent between the levels of f.
    """
    if _same_grouping(term, other):
        return term
    if term.relationship is not None or other.relationship is not None:
        return None
    named = list(zip(term.columns, term.parts, strict=True))
    shared = [part for name, part in named if name in other.columns]
    further = [part for name, part in named if name not in other.columns]
    if not shared or not further or not _same_partition(_combined(shared)[term.codes], other.codes):
        return None
    labels = _combined(further)
    if labels.max() >= other.Z.shape[1]:  # more dummy variables than effects
        return None
    dummies = labels[term.codes][:, None] == np.arange(labels.max() + 1)
    products = (dummies[:, :, None] * term.Z[:, None, :]).reshape(len(term.Z), -1)
    structure: str | Covariance = "identity"
    if term.Z.shape[1] > 1:  # blocks of covariances, one per level of f, are no exchangeable matrix
        divides = term.structure in ("independent", "identity")
        structure = term.structure if divides else "unstructured"
    return replace(term, codes=other.codes, Z=products, structure=structure)


def _combined(codes: list[np.ndarray]) -> np.ndarray:
    """Numbers, from 0 and without gaps, of the observed combinations of codes."""
    _, numbers = np.unique(np.column_stack(codes), axis=0, return_inverse=True)
    return numbers.reshape(-1)


def _is_special_case(
    Z: np.ndarray, structure: str | Covariance, kind: str | Covariance, wide: np.ndarray
) -> bool:
    """Whether a term of the structure ``kind`` has this term as a special case; both have one grouping."""
    if kind == "unstructured":
        return not _outside_span(Z, wide).any()
    if not isinstance(kind, str):  # a covariance function of these very positions
        return structure == kind and np.array_equal(Z, wide)
    # One effect that is the sum of the others: all their correlations are 1.
    if kind == "exchangeable" and Z.shape[1] == 1 and np.array_equal(Z[:, 0], wide.sum(axis=1)):
        return True
    # The other structures hold for these very columns only.
    matches = [j for column in Z.T for j in range(wide.shape[1]) if np.array_equal(column, wide[:, j])]
    if len(matches) < Z.shape[1]:
        return False
    if Z.shape[1] == 1 and wide.shape[1] == 1:
        return True
    if kind == "independent" and Z.shape[1] == 1:
        return True
    return structure in _SPECIAL_CASES[kind] and (kind == "independent" or Z.shape[1] == wide.shape[1])


def _outside_span(columns: np.ndarray, wide: np.ndarray) -> np.ndarray:
    """Which columns are no linear combination of the wide matrix's."""
    scale = np.sqrt(np.einsum("ij,ij->j", columns, columns))
    basis = _basis(wide)
    rest = columns - basis @ (basis.T @ columns)
    return np.sqrt(np.einsum("ij,ij->j", rest, rest)) > _SPAN_TOLERANCE * scale


def _basis(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the span of the columns."""
    if columns.shape[1] == 0:
        return columns
    basis, triangle = np.linalg.qr(columns / np.maximum(np.abs(columns).max(axis=0), np.finfo(float).tiny))
    rotation, singular, _ = np.linalg.svd(triangle)
    return basis @ rotation[:, singular > _SPAN_TOLERANCE * singular[0]]
