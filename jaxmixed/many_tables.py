"""Tables of many fits as columns of numpy arrays, the model axis first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxmixed._distributions import t_p_values, t_quantiles
from jaxmixed.errors import DataError
from jaxmixed.inference import natural_parameters, variance_inference, variance_labels, variance_tables
from jaxmixed.many_denominators import Designs, satterthwaite_df
from jaxmixed.many_estimates import OK, REASONS, ManyEstimates
from jaxmixed.multiplicity import Adjustment, adjusted_p_values

DDF = ("none", "satterthwaite", "residual")
"""Methods for the denominator degrees of freedom of tests of coefficients."""

CHUNK = 1 << 16
"""Models whose variances are examined at a time: their covariance matrices take memory."""


def check_ddf(ddf: object) -> None:
    """Refuse a method for the degrees of freedom that there is not."""
    if ddf not in DDF:
        raise DataError(
            f"ddf is {ddf!r}, which is not available for many models; choose one of"
            f" {', '.join(map(repr, DDF))}"
        )


def standard_errors(estimates: ManyEstimates) -> np.ndarray:
    """Standard errors of the coefficients, (m, p)."""
    return np.sqrt(np.einsum("mii->mi", estimates.cov_beta))


def coefficient_df(estimates: ManyEstimates, designs: Designs | None, ddf: str) -> np.ndarray:
    """Denominator degrees of freedom of every coefficient of every model, (m, p).

    Parameters
    ----------
    estimates : ManyEstimates
    designs : callable or None
        Gives the designs of models (:data:`jaxmixed.many_denominators.Designs`), for ``"satterthwaite"``.
    ddf : str
        One of `DDF`.

    Returns
    -------
    (m, p) array
        Infinite for normal tests; NaN where a coefficient is aliased or a model has no estimates.

    Raises
    ------
    DataError
        If there is no such method, or it needs designs that are not there.
    """
    check_ddf(ddf)
    if ddf == "satterthwaite":
        if designs is None:
            raise DataError(
                "these results do not know the designs of their models, which ddf='satterthwaite' needs"
            )
        return satterthwaite_df(estimates, designs)
    by_model = estimates.nobs - estimates.rank if ddf == "residual" else np.full(len(estimates), np.inf)
    return np.where(np.isnan(estimates.beta), np.nan, np.asarray(by_model, dtype=np.float64)[:, None])


def coefficient_tables(
    estimates: ManyEstimates, df: np.ndarray, level: float = 0.95, adjust: Adjustment = "fdr_bh"
) -> dict[str, np.ndarray]:
    """Numbers of the tables of fixed effects, (m, p) each; NaN for aliased ones and models without estimates.

    Parameters
    ----------
    estimates : ManyEstimates
    df : (m, p) array
        Denominator degrees of freedom, from :func:`coefficient_df`.
    level : float
        Level of the intervals.
    adjust : str
        How p-values are adjusted, each coefficient's over the models.

    Returns
    -------
    dict of str to (m, p) array
        ``estimate, std_error, df, statistic, p_value, p_adjusted, conf_low, conf_high``.
    """
    half = t_quantiles(level, df)
    beta, error = estimates.beta, standard_errors(estimates)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = beta / error
    p_value = t_p_values(statistic, df)
    return {
        "estimate": beta.copy(),
        "std_error": error,
        "df": df.copy(),
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
