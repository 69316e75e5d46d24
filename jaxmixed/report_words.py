"""A fitted model in sentences: what was modelled, what varies between which groups, how it was estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxmixed.errors import printable
from jaxmixed.formatting import count, counted
from jaxmixed.inference import MOST_NAMED
from jaxmixed.weighted_samples import is_pseudo_likelihood, weights_notes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxmixed.estimates import TermEstimate
    from jaxmixed.fitted import Fitted

_INTERCEPT = "(Intercept)"
_METHODS = {"ml": "the likelihood (ML)", "reml": "the restricted likelihood (REML)"}
_STRUCTURES = {
    "unstructured": "with free variances and covariances",
    "independent": "independently of each other",
    "identity": "independently of each other and with one variance",
    "exchangeable": "with one variance and one covariance",
    "ar1": "with one variance and an autocorrelation of the first order, AR(1)",
    "toeplitz": "with one variance and one correlation for each lag",
}
_TESTS = {
    "none": "normal (z) tests",
    "satterthwaite": "t tests with Satterthwaite's degrees of freedom",
    "kenward-roger": "t tests with Kenward and Roger's degrees of freedom and adjusted standard errors",
    "residual": "t tests with residual degrees of freedom",
    "between-within": "t tests with between-within degrees of freedom",
    "containment": "t tests with containment degrees of freedom",
}


def listed(names: Sequence[str]) -> str:
    """Names as in a sentence; of many, the first and how many more.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b", "c", "d", "e", "f"])
    ('a', 'a, b and c', 'a, b, c and 3 more')
    """
    if len(names) > MOST_NAMED + 1:
        return f"{', '.join(names[: MOST_NAMED - 1])} and {len(names) - MOST_NAMED + 1} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _varying(term: TermEstimate, levels: int) -> str:
    names = [name for name in term.names if name != _INTERCEPT]
    what = (["the intercept"] if _INTERCEPT in term.names else []) + (
        [f"the effect{'s' if len(names) > 1 else ''} of {listed(names)}"] if names else []
    )
    verb = "varies" if len(term.names) == 1 else "vary"
    structure = _STRUCTURES.get(term.covariance.name, f"with the covariance function {term.covariance.name}")
    return (
        f"{' and '.join(what)} {verb} between the {count(levels)} levels of {term.group}"
        f"{', ' + structure if len(term.names) > 1 else ''}"
    )


def _estimation(fit: Fitted) -> str:
    estimates, checks = fit.estimates, fit.estimates.diagnostics
    pseudo = is_pseudo_likelihood(estimates)
    what = "the pseudo-likelihood" if pseudo else _METHODS[estimates.method]
    if not checks.converged:
        return f"The estimates were to maximise {what}, but a check of the optimum failed."
    how = f", found in {counted(checks.iterations, 'iteration')} with exact derivatives"
    return f"The estimates maximise {what}{how if len(estimates.free) else ''}."


def _residuals(fit: Fitted) -> list[str]:
    """How residuals are correlated, and how their standard deviations differ."""
    own = fit.estimates.residual
    if own is None:
        return [] if fit.estimates.terms else ["Rows are independent: this is a linear model."]
    labels = own.labels
    where = f" of a {labels.group}" if labels.group is not None else ""
    sentences = [f"The residuals{where} have the covariance structure {labels.text}."]
    if labels.variance_by is not None:
        sentences.append(f"Their standard deviations differ between the levels of {labels.variance_by}.")
    if labels.covariate is not None:
        form = "a power" if own.covariance.function == "power" else "an exponential function"
        sentences.append(f"Their standard deviations are proportional to {form} of {labels.covariate}.")
    if labels.by is not None:
        sentences.append(f"Every {labels.by} has residual parameters of its own.")
    return sentences


def model_in_words(fit: Fitted, ddf: str) -> list[str]:
    """What was fitted, in a few sentences; names are printable, not escaped.

    Parameters
    ----------
    fit : MixedResults
    ddf : str
        Degrees of freedom of the tests of coefficients.

    Returns
    -------
    list of str

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> for sentence in model_in_words(fit, "none")[:2]:
    ...     print(sentence)  # doctest: +NORMALIZE_WHITESPACE
    The response is Reaction, in 180 rows. Its mean is a linear function of Days.
    The intercept and the effect of Days vary between the 18 levels of Subject, with free variances and
    covariances.
    """
    frame, estimates = fit.frame, fit.estimates
    by = f"a linear function of {listed(frame.term_labels)}" if frame.term_labels else "the same in all rows"
    offset = ", to which an offset is added" if frame.offset is not None else ""
    rows = counted(estimates.nobs, "row")
    sentences = [f"The response is {frame.response_name}, in {rows}. Its mean is {by}{offset}."]
    for term in estimates.terms:
        group = frame.groups[term.frame_index]
        known = "; the levels have a known relationship" if group.relationship is not None else ""
        text = _varying(term, len(group.levels)) + known
        sentences.append(f"{text[0].upper()}{text[1:]}.")
    sentences += _residuals(fit)
    weights = (
        " Rows are weighted: the residual variance of a row is divided by its weight."
        if estimates.weighted
        else ""
    )
    sentences += [f"{note[0].upper()}{note[1:]}" for note in weights_notes(estimates, len(frame.y))]
    sentences.append(_estimation(fit))
    sentences.append(f"Tests of coefficients are {_TESTS.get(ddf, ddf)}.{weights}")
    dropped = ", ".join(f"{name} {count(number)}" for name, number in frame.dropped_by.items() if number)
    were = "was" if frame.n_dropped == 1 else "were"
    sentences.append(
        f"{counted(frame.n_dropped, 'row')} with missing values {were} left out ({dropped})."
        if frame.n_dropped
        else "No row was left out for missing values."
    )
    return [printable(sentence) for sentence in sentences]
