"""Comparing fits: likelihood-ratio tests, the test against the linear model, information criteria.

A variance that a test sets to zero lies on the boundary of its range, where the likelihood ratio has a
mixture of chi-squared distributions: for one more random effect, which brings one variance and r covariances,
½χ²(r) + ½χ²(r + 1) (Self & Liang 1987, JASA 82, 605-610; Stram & Lee 1994, Biometrics 50, 1171-1177); for
several, one whose weights depend on the information about them (:mod:`jaxmixed.boundary`).

Restricted likelihoods of different fixed effects cannot be compared: such fits are fitted anew by maximum
likelihood, as lme4's ``anova`` does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from jaxmixed import fitting
from jaxmixed._distributions import chi2_p_value
from jaxmixed.boundary import boundary_distribution
from jaxmixed.draws import check_seed
from jaxmixed.errors import ConvergenceWarning, DataError, DesignError, printable, user_level
from jaxmixed.fitted import Fitted
from jaxmixed.formatting import counted, p_phrase, wrapped
from jaxmixed.model_table import ModelTable, described, model_rows
from jaxmixed.nesting import Nesting, nesting_of, same_columns
from jaxmixed.nulls import NullDistribution, likelihood_ratios, simulated_null
from jaxmixed.resampling import labels_of
from jaxmixed.weighted_samples import is_pseudo_likelihood, refuse_sampling_weights, total_frequencies

if TYPE_CHECKING:
    from jaxmixed.chi_bar_square import ChiBarSquare
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

CONSERVATIVE = "the LR test is conservative: it tests variances at their boundary, zero."
UNDETERMINED = (
    "the LR test is approximate: without its variance a kernel has no parameters; "
    "lrtest(a, b, simulate=1000) makes no such approximation."
)
REFITTED = "the fixed effects differ, so the models are compared as fitted anew by maximum likelihood (ML)."
_MOST_WEIGHTS = 4  # written into the name of a distribution


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
        ``"chi2(k)"``, ``"chibar2(01)"`` (an equal mixture of zero and chi2(1)), a mixture such as ``"0.5
        chi2(1) + 0.5 chi2(2)"`` (``chi2(0)`` is zero), ``"chibar2(d to k)"`` (a mixture whose weights are in
        `weights` or, for covariance matrices, not known one by one), or ``"simulated"``.
    note
        What to know about the distribution and the fits; empty when there is nothing to say.
    table
        The two models, the smaller first: formula, residual structure, number of parameters, log-likelihood,
        AIC, BIC.
    null
        The simulated null distribution, where one was asked for.
    weights
        Of a mixture, by degrees of freedom; None where there is one distribution, or they are not known.
    """

    statistic: np.float64
    df: int
    p_value: np.float64
    distribution: str
    note: str
    table: pd.DataFrame
    null: NullDistribution | None = None
    weights: pd.Series | None = None

    def __str__(self) -> str:
        lines = ["Likelihood-ratio test"]
        for role, (_, row) in zip(("smaller", "larger "), self.table.iterrows(), strict=True):
            lines.append(wrapped(described(row), first=f"  {role}  ", indent="           "))
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
    """Test of random effects and residual structure at once; fields are those of `LikelihoodRatioTest`."""

    statistic: np.float64
    df: int
    p_value: np.float64
    distribution: str
    note: str


def linear_model_test(estimates: Estimates) -> LinearModelTest | None:
    """Likelihood-ratio test against the linear model fitted by the same criterion.

    None for a linear model, and where there are sampling weights: a pseudo-likelihood has no such test.

    That model has independent residuals with one variance. With one variance parameter the distribution is
    the mixture of zero and chi2(1); otherwise chi2(k), which is conservative if there are random effects.
    """
    k = len(estimates.free)
    if k == 0 or is_pseudo_likelihood(estimates):
        return None
    statistic = _statistic(estimates.linear_llf, estimates.llf) if estimates.all_theta.any() else 0.0
    if not estimates.terms:
        p_value = chi2_p_value(statistic, k)
        return LinearModelTest(np.float64(statistic), k, np.float64(p_value), f"chi2({k})", "")
    if k == 1:
        p_value = 1.0 if statistic <= 0 else 0.5 * chi2_p_value(statistic, 1)
        return LinearModelTest(np.float64(statistic), 1, np.float64(p_value), "chibar2(01)", "")
    p_value = chi2_p_value(statistic, k)
    note = UNDETERMINED if any(term.covariance.natural_names for term in estimates.terms) else CONSERVATIVE
    return LinearModelTest(np.float64(statistic), k, np.float64(p_value), f"chi2({k})", note)


@dataclass(frozen=True, slots=True, eq=False)
class _Refitted:
    """A fit by another method."""

    frame: ModelFrame
    estimates: Estimates
    state: Any


@overload
def lrtest(
    a: Fitted,
    b: Fitted,
    *,
    mixture: bool = False,
    simulate: int | None = None,
    seed: int | None = None,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> LikelihoodRatioTest: ...
@overload
def lrtest(
    a: Fitted,
    b: Fitted,
    c: Fitted,
    /,
    *more: Fitted,
    mixture: bool = False,
    simulate: int | None = None,
    seed: int | None = None,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> pd.DataFrame: ...
def lrtest(
    a: Fitted,
    b: Fitted,
    *more: Fitted,
    mixture: bool = False,
    simulate: int | None = None,
    seed: int | None = None,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> LikelihoodRatioTest | pd.DataFrame:
    """Likelihood-ratio test of two nested models, or of a sequence of them.

    Parameters
    ----------
    a, b, *more : MixedResults
        Fits to the same rows by the same method, in any order. REML fits whose fixed effects differ are
        fitted anew by maximum likelihood, as the note says.
    mixture : bool
        Where variances are tested, at zero: use the mixture of chi-squared distributions that the likelihood
        ratio then has in large samples, instead of chi2(k), which is conservative and what Stata prints. One
        variance alone always has its mixture, ``chibar2(01)``. For one variance with covariances the mixture
        is ``0.5 chi2(k - 1) + 0.5 chi2(k)``; for several variances its weights come from the expected
        information at the smaller fit.
    simulate : int, optional
        Take the p-value from the likelihood ratios of so many responses drawn from the smaller model, to
        which both models are fitted: right also where no chi-squared distribution is (several variances at
        their boundary, few groups). `null` of the result holds them.
    seed : int, optional
        Of the simulated responses, non-negative; None takes a fresh one, which ``null.seed`` tells. Of a
        mixture, whose Monte-Carlo average has seed 0 otherwise.
    devices, mesh, progress
        As for `MixedResults.bootstrap`.

    Returns
    -------
    LikelihoodRatioTest or pandas.DataFrame
        Of two fits, a test. Of more, the table of `compare`, each tested against the row above.

    Raises
    ------
    DataError
        If the fits do not use the same rows, response, weights or method.
    DesignError
        If the models are not nested; with `mixture`, if the distribution cannot be found.

    References
    ----------
    Self & Liang (1987), JASA 82, 605-610; Stram & Lee (1994), Biometrics 50, 1171-1177; Shapiro (1988),
    International Statistical Review 56, 49-62.

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
    >>> linear = jm.mixed("Reaction ~ Days", data)
    >>> jm.lrtest(linear, intercept, slope)["distribution"].tolist()
    ['', 'chibar2(01)', 'chi2(2)']
    """
    given = (a, b, *more)
    _require_fits(given)
    fits, note = _comparable(given)
    if simulate is None and seed is not None and not mixture:
        raise DataError("seed= is that of simulated responses; give their number: simulate=999")
    own_seed = 0 if seed is None else check_seed(seed)
    order = sorted(range(len(fits)), key=lambda i: fits[i].estimates.num_params)
    tests = []
    for lower, upper in pairwise(order):
        small, large = fits[lower], fits[upper]
        test = _test(small, large, _require_nested(small, large), mixture, own_seed)
        if simulate is not None:
            null = simulated_null(small, large, simulate, seed, devices=devices, mesh=mesh, progress=progress)
            test = _with_null(test, null)
        tests.append(test)
    if not more:
        return replace(tests[0], note=_joined(tests[0].note, note))
    return _comparison(fits, order, list(tests), note)


def _require_nested(small: Fitted, large: Fitted) -> Nesting:
    """How one model is a special case of the other.

    Raises
    ------
    DesignError
        If it is none.
    """
    advice = "compare them by AIC or BIC: jm.compare(a, b)"
    if small.estimates.num_params == large.estimates.num_params:
        raise DesignError(
            f"both models have {small.estimates.num_params} parameters, so neither is a special case of the"
            f" other; {advice}"
        )
    nesting = nesting_of(small, large)
    if nesting.obstacle:
        raise DesignError(f"the models are not nested: {nesting.obstacle}; {advice}")
    return nesting


def _with_null(test: LikelihoodRatioTest, null: NullDistribution) -> LikelihoodRatioTest:
    """The test with the p-value of its simulated null distribution."""
    low, high = null.conf_int()
    usual = p_phrase(float(test.p_value))
    note = (
        f"{counted(null.n_ok, 'response')} simulated from the smaller model (seed {null.seed}); 95%"
        f" Monte-Carlo limits of the p-value {low:.4f} to {high:.4f}; by {test.distribution} {usual}."
    )
    return replace(
        test, p_value=np.float64(null.p_value), distribution="simulated", note=note, null=null, weights=None
    )


def _joined(*notes: str) -> str:
    """Sentences that stand in one note, each with a capital but the first."""
    said = [note for note in notes if note]
    return " ".join([*said[:1], *(note[0].upper() + note[1:] for note in said[1:])])


def _test(
    small: Fitted, large: Fitted, nesting: Nesting, mixture: bool, seed: int = 0
) -> LikelihoodRatioTest:
    statistic = _statistic(small.estimates.llf, large.estimates.llf)
    df = large.estimates.num_params - small.estimates.num_params
    p_value, distribution, weights, note = chi2_p_value(statistic, df), f"chi2({df})", None, ""
    if nesting.more_effects > 0:
        mixed = boundary_distribution(small, large, nesting, df, seed) if mixture and df > 1 else None
        if df == 1:
            p_value = 1.0 if statistic <= 0 else 0.5 * p_value
            distribution, weights = "chibar2(01)", pd.Series([0.5, 0.5], index=[0, 1])
        elif mixed is not None:
            p_value, error = mixed.p_value(statistic)
            distribution, weights = _mixture_name(mixed), _weights(mixed)
            note = _mixture_note(mixed, error, seed)
        elif not mixture:
            note = _conservative(large, nesting, df, len(large.estimates.theta) - len(small.estimates.theta))
    if statistic < 0:
        note = "the larger model has the lower likelihood, so at least one of the fits has not converged."
        warnings.warn(f"lrtest: {note}", ConvergenceWarning, stacklevel=user_level())
    table = model_rows([small, large])
    return LikelihoodRatioTest(
        np.float64(statistic), df, np.float64(p_value), distribution, note, table, weights=weights
    )


def _conservative(large: Fitted, nesting: Nesting, df: int, df_random: int) -> str:
    """What to know of a chi-squared distribution beside the one that takes boundaries into account."""
    if any(term.covariance.natural_names for term in large.estimates.terms) and df_random > 1:
        return UNDETERMINED
    if nesting.more_effects == 1:
        return f"{CONSERVATIVE} With mixture=True its distribution is 0.5 chi2({df - 1}) + 0.5 chi2({df})."
    return f"{CONSERVATIVE} mixture=True takes the mixture of chi2 that its boundary brings."


def _mixture_name(mixed: ChiBarSquare) -> str:
    """``0.5 chi2(1) + 0.5 chi2(2)``, or the degrees of freedom alone where there are many."""
    found, last = _weights(mixed), mixed.free + mixed.dimension
    if found is None or len(found) > _MOST_WEIGHTS:
        return f"chibar2({mixed.free} to {last})"
    return " + ".join(f"{weight:.3g} chi2({df})" for df, weight in found.items())


def _weights(mixed: ChiBarSquare) -> pd.Series | None:
    if mixed.weights is None:
        return None
    return pd.Series(mixed.weights, index=mixed.free + np.arange(mixed.dimension + 1))


def _mixture_note(mixed: ChiBarSquare, error: float, seed: int) -> str:
    if mixed.dimension == 1:
        return ""
    note = "the weights of the mixture come from the information about the variances at the smaller model"
    if mixed.shares is None:
        return f"{note}."
    draws = f"{len(mixed.shares):,} draws (seed {seed})"
    return f"{note}, by {draws}; the p-value has a Monte-Carlo standard error of {error:.2g}."


def compare(*fits: Fitted, mixture: bool = False) -> pd.DataFrame:
    """Table of fits to the same data, from the fewest parameters to the most.

    Parameters
    ----------
    *fits : MixedResults
        Two or more fits to the same rows by the same method. REML fits whose fixed effects differ are fitted
        anew by maximum likelihood, as a note below the table says.
    mixture : bool
        As for `lrtest`: mixtures of chi-squared distributions where variances are tested at zero.

    Returns
    -------
    pandas.DataFrame
        A row per model, in order of its number of parameters; the index is the position among the arguments,
        from 1. Columns ``formula``, ``method``, ``num_params``, ``llf``, ``deviance``, ``aic``, ``bic``,
        ``residuals`` (the residual structure), and the likelihood-ratio test against the row above where the
        two are nested: ``statistic``, ``df``, ``p_value``, ``distribution``. ``attrs["note"]`` holds what is
        to be known about fits and tests.

    Raises
    ------
    DataError
        If the fits do not use the same rows, response, weights or method.

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
    chosen, note = _comparable(fits)
    order = sorted(range(len(chosen)), key=lambda i: chosen[i].estimates.num_params)
    tests: list[LikelihoodRatioTest | None] = []
    for lower, upper in pairwise(order):
        small, large = chosen[lower], chosen[upper]
        nesting = nesting_of(small, large)
        same_size = small.estimates.num_params == large.estimates.num_params
        tests.append(None if same_size or nesting.obstacle else _test(small, large, nesting, mixture))
    return _comparison(chosen, order, tests, note)


def _comparison(
    fits: Sequence[Fitted], order: list[int], tests: list[LikelihoodRatioTest | None], note: str
) -> pd.DataFrame:
    """Rows of models, each but the first with its test against the row above."""
    table = model_rows([fits[i] for i in order])
    rows = [(np.nan, np.nan, np.nan, "")]
    notes = [note] if note else []
    for number, test in zip(order[1:], tests, strict=True):
        if test is None:
            rows.append((np.nan, np.nan, np.nan, ""))
            continue
        rows.append((float(test.statistic), test.df, float(test.p_value), test.distribution))
        if test.note:
            notes.append(f"model {number + 1}: {test.note}")
    for j, name in enumerate(("statistic", "df", "p_value", "distribution")):
        table[name] = [row[j] for row in rows]
    noted = ModelTable(table)
    noted.index = pd.Index([i + 1 for i in order], name="model")
    if notes:
        noted.attrs["note"] = _joined(*notes)
    return noted


def _statistic(llf_small: float, llf_large: float) -> float:
    """Twice the difference of the log-likelihoods, 0 where it is only numerical error."""
    return float(likelihood_ratios(float(llf_small), float(llf_large)))


def _require_fits(fits: tuple[Any, ...]) -> None:
    for fit in fits:
        if not (hasattr(fit, "frame") and hasattr(fit, "estimates")):
            raise DataError(f"a comparison needs results of mixed(), not {type(fit).__name__}")
        why = "differences of pseudo-likelihoods are not distributed as those of likelihoods"
        refuse_sampling_weights(fit.estimates, "lrtest() or compare()", why, "use test()")


def _require_same_data(a: Fitted, b: Fitted) -> None:
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
    pairs = [("weights", one.weights, two.weights), ("offsets", one.offset, two.offset)]
    pairs.append(("frequency weights", total_frequencies(one), total_frequencies(two)))
    for what, first, second in pairs:
        same = first is second or (first is not None and second is not None and np.array_equal(first, second))
        if not same and not (what == "offsets" and _both_zero(first, second)):
            raise DataError(
                f"the fits have different {what}, so a likelihood ratio would not compare their effects alone"
            )


def _both_zero(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    return all(values is None or not values.any() for values in (first, second))


def _comparable(fits: Sequence[Fitted]) -> tuple[Sequence[Fitted], str]:
    """Fits to the same data by one criterion, and a note if they had to be fitted anew for that.

    Raises
    ------
    DataError
        If they do not use the same data or method.
    """
    first = fits[0]
    for other in fits[1:]:
        _require_same_data(first, other)
        _require_same_method(first, other)
    if first.estimates.method == "ml" or all(same_columns(first, other) for other in fits[1:]):
        return fits, ""
    refitted = [_by_ml(fit) for fit in fits]
    doubtful = [str(i + 1) for i, fit in enumerate(refitted) if not fit.estimates.diagnostics.converged]
    if not doubtful:
        return refitted, REFITTED
    problem = f"the ML fit of model {' and '.join(doubtful)} has not converged."
    warnings.warn(f"comparison: {problem}", ConvergenceWarning, stacklevel=user_level())
    return refitted, _joined(REFITTED, problem)


def _by_ml(fit: Fitted) -> _Refitted:
    """The same model fitted by maximum likelihood to the same reduced data."""
    residual = fit.estimates.residual
    found = fitting.fit(
        fit.state,
        labels_of(fit.estimates),
        fit.frame.x_names,
        method="ml",
        weighted=fit.estimates.weighted,
        residual_labels=None if residual is None else residual.labels,
    )
    return _Refitted(fit.frame, found, fit.state)


def _require_same_method(a: Fitted, b: Fitted) -> None:
    one, two = a.estimates.method, b.estimates.method
    if one != two:
        raise DataError(
            f"one fit is {one.upper()} and the other {two.upper()}; their criteria cannot be"
            ' compared: refit both with method="ml"'
        )


def require_same_criterion(a: Fitted, b: Fitted) -> None:
    """Refuse fits whose likelihoods are not of one kind, where they cannot be fitted anew.

    Parameters
    ----------
    a, b : Fitted

    Raises
    ------
    DataError
        If their methods differ.
    DesignError
        If they are REML fits with different fixed effects.
    """
    _require_same_method(a, b)
    if a.estimates.method == "reml" and not same_columns(a, b):
        raise DesignError(
            "the fits are REML fits with different fixed effects, and restricted likelihoods of different"
            ' fixed effects cannot be compared: refit both with method="ml"'
        )
