"""Tables of many fits as columns of numpy arrays, the model axis first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxmixed._distributions import normal_p_values, normal_quantile
from jaxmixed.errors import DataError
from jaxmixed.inference import natural_parameters, variance_inference, variance_labels, variance_tables
from jaxmixed.many_estimates import OK, REASONS, ManyEstimates
from jaxmixed.multiplicity import Adjustment, adjusted_p_values

DDF = ("none",)
"""Methods for the denominator degrees of freedom of tests of coefficients."""

CHUNK = 1 << 16
"""Models whose variances are examined at a time: their covariance matrices take memory."""


def check_ddf(ddf: object) -> None:
    """Refuse a method for the degrees of freedom that there is not."""
    if ddf not in DDF:
        raise DataError(
            f"ddf is {ddf!r}, which is not available; available: {', '.join(map(repr, DDF))} (normal tests)"
        )


def standard_errors(estimates: ManyEstimates) -> np.ndarray:
    """Standard errors of the coefficients, (m, p)."""
    return np.sqrt(np.einsum("mii->mi", estimates.cov_beta))


def coefficient_tables(
    estimates: ManyEstimates, level: float = 0.95, adjust: Adjustment = "fdr_bh", ddf: str = "none"
) -> dict[str, np.ndarray]:
    """Numbers of the tables of fixed effects, (m, p) each; NaN for aliased ones and models without estimates.

    Parameters
    ----------
    estimates : ManyEstimates
    level : float
        Level of the intervals.
    adjust : str
        How p-values are adjusted, each coefficient's over the models.
    ddf : str
        Denominator degrees of freedom; ``"none"``: infinitely many, that is, normal tests.

    Returns
    -------
    dict of str to (m, p) array
        ``estimate, std_error, df, statistic, p_value, p_adjusted, conf_low, conf_high``.
    """
    check_ddf(ddf)
    half = normal_quantile(level)
    beta, error = estimates.beta, standard_errors(estimates)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = beta / error
    p_value = normal_p_values(statistic.ravel()).reshape(statistic.shape)
    return {
        "estimate": beta.copy(),
        "std_error": error,
        "df": np.where(np.isnan(beta), np.nan, np.inf),
        "statistic": statistic,
        "p_value": p_value,
        "p_adjusted": adjusted_p_values(p_value, adjust),
        "conf_low": beta - half * error,
        "conf_high": beta + half * error,
    }


def variance_columns(
    estimates: ManyEstimates, level: float = 0.95
) -> tuple[dict[str, list[str | None]], dict[str, np.ndarray]]:
    """Labels of the P variance parameters, and the numbers of their tables, (m, P) each.

    Parameters
    ----------
    estimates : ManyEstimates
    level : float
        Level of the intervals.

    Returns
    -------
    labels : dict of str to list
        ``group``, ``effect``, ``effect2``; the residual comes last.
    columns : dict of str to (m, P) array
        As :func:`jaxmixed.inference.variance_tables`.
    """
    parts, index = [], None
    for start in range(0, max(len(estimates), 1), CHUNK):
        found = variance_inference(estimates.variance_parameters(slice(start, start + CHUNK)))
        parts.append(variance_tables(found, level))
        index = found.index
    assert index is not None
    terms = [
        (label.group, label.names, covariance.homogeneous)
        for label, covariance in zip(estimates.labels, estimates.covariances, strict=True)
    ]
    labels = variance_labels(index, terms)
    return labels, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def variance_terms(labels: dict[str, list[str | None]]) -> list[str]:
    """Names of variance parameters as the rows of `tidy` have them: ``var(x)`` and ``cov(x, z)``."""
    return [
        f"var({group})" if first is None else f"var({first})" if second is None else f"cov({first}, {second})"
        for group, first, second in zip(labels["group"], labels["effect"], labels["effect2"], strict=True)
    ]


def reason_texts(estimates: ManyEstimates, details: dict[int, str]) -> np.ndarray:
    """What is wrong with each model, in words; empty when all is well."""
    texts = np.empty(256, dtype=object)
    texts[:] = ""
    for code, text in REASONS.items():
        texts[code] = text
    found = texts[estimates.reason]
    for model, text in details.items():
        found[model] = text
    return found


def wide_columns(estimates: ManyEstimates, details: dict[int, str]) -> Iterator[tuple[str, np.ndarray]]:
    """One row per model: verdicts, criterion, and every parameter with its standard error.

    Parameters
    ----------
    estimates : ManyEstimates
    details : dict of int to str
        Specific reasons.

    Yields
    ------
    str, (m,) array
        Name and values of a column.
    """
    yield "converged", estimates.reason == OK
    yield "is_singular", estimates.singular
    yield "reason", reason_texts(estimates, details)
    yield "nobs", estimates.nobs
    yield "llf", estimates.llf
    yield "sigma", estimates.sigma
    errors = standard_errors(estimates)
    for j, name in enumerate(estimates.x_names):
        yield f"estimate[{name}]", estimates.beta[:, j]
        yield f"std_error[{name}]", errors[:, j]
    labels, columns = variance_columns(estimates)
    for j, (group, name) in enumerate(zip(labels["group"], variance_terms(labels), strict=True)):
        own = name if group == "Residual" else f"{group}: {name}"
        yield f"estimate[{own}]", columns["estimate"][:, j]
        yield f"std_error[{own}]", columns["std_error"][:, j]
    natural = natural_parameters(estimates.variance_parameters())
    for label, found in zip(estimates.labels, natural, strict=True):
        for j, name in enumerate(found.names):
            yield f"estimate[{label.group}: {name}]", found.estimate[:, j]
            yield f"std_error[{label.group}: {name}]", found.std_error[:, j]
