"""Variances of random effects and residuals as the parameters that Stata's `mixed` tabulates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmixed._distributions import normal_quantile
from jaxmixed.estimates import Estimates
from jaxmixed.inference import VarianceParameters, parameter_covariance, variance_inference
from jaxmixed.interval_scales import SCALES
from jaxmixed.residual_family import Scale
from jaxmixed.residual_inference import has_sds, residual_inference
from jaxmixed.stata_design import CONSTANT
from jaxmixed.stata_levels import RandomLevel, ResidualRequest
from jaxmixed.stata_tables import PARAMETER, Parameter, Section

RESIDUAL = "Residual"


def sections(
    fit: Any,
    levels: Sequence[RandomLevel],
    residual: ResidualRequest | None,
    level: float = 95,
    sds: bool = False,
) -> list[Section]:
    """Sections of the table of random effects.

    Parameters
    ----------
    fit : MixedResults
    levels : sequence of RandomLevel
    residual : ResidualRequest or None
    level : float
        Of the intervals, in per cent.
    sds : bool
        Standard deviations and correlations in place of variances and covariances.

    Returns
    -------
    list of Section
    """
    found = [
        Section((f"{own.request.name + ':':<{PARAMETER - 7}}(empty)",), ())
        if own.term is None
        else Section((f"{own.request.name}: {own.title}",), _of_level(fit, own, level, sds))
        for own in levels
    ]
    return [*found, _of_residuals(fit, residual, level, sds)]


def _of_level(fit: Any, own: RandomLevel, level: float, sds: bool) -> tuple[Parameter, ...]:
    estimates = fit.estimates
    number = next(at for at, term in enumerate(estimates.terms) if term.frame_index == own.term)
    index = variance_inference(VarianceParameters.of(estimates)).model(0).index
    table = fit.variance_table(level / 100)
    row_of = {(i, j): row for row, (term, i, j) in enumerate(index) if term == number}
    prefix = "sd_or_corr" if sds else ""
    columns = [f"{prefix}_{name}".strip("_") for name in ("std_error", "conf_low", "conf_high")]
    columns = [prefix or "estimate", *columns]

    def parameter(label: str, i: int, j: int) -> Parameter:
        row = table.iloc[row_of[max(i, j), min(i, j)]]
        return Parameter(label, *(float(row[column]) for column in columns))

    names, order = own.names, effect_positions(own)
    q = len(names)
    variance, covariance = ("sd", "corr") if sds else ("var", "cov")
    if own.title in ("Identity", "Exchangeable"):
        joint = " ".join(names)
        # One variance, and perhaps one covariance, stand for all.
        one = next((i, j) for i, j in row_of if i == j)
        found = [parameter(_named(variance, joint), *one)]
        if own.title == "Exchangeable":
            other = next((i, j) for i, j in row_of if i != j)
            found.append(parameter(_named(covariance, joint), *other))
        return tuple(found)
    found = [parameter(_named(variance, names[a]), order[a], order[a]) for a in range(q)]
    if own.title == "Unstructured":
        found += [
            parameter(_named(covariance, f"{names[a]},{names[b]}"), order[a], order[b])
            for a in range(q)
            for b in range(a + 1, q)
        ]
    return tuple(found)


def effect_positions(own: RandomLevel) -> list[int]:
    """Position in the fitted term of each effect of the table; the term has its intercept first."""
    names = own.names
    if CONSTANT not in names:
        return list(range(len(names)))
    return [0 if name == CONSTANT else at + 1 for at, name in enumerate(names)]


def _named(kind: str, names: str) -> str:
    """``var(x)``, shortened to the width of the table."""
    room = PARAMETER - len(kind) - 2
    if len(names) <= room:
        return f"{kind}({names})"
    if "," in names:
        first, second = names.split(",")
        half = (room - 1) // 2
        short = [name if len(name) <= half else f"{name[: half - 2]}~{name[-1]}" for name in (first, second)]
        return f"{kind}({','.join(short)})"
    parts = names.split(" ")
    if len(parts) > 1:
        return f"{kind}({parts[0]}..{parts[-1]})" if len(parts[0] + parts[-1]) <= room - 2 else f"{kind}(..)"
    return f"{kind}({names[: room - 2]}~{names[-1]})"


class _Residuals:
    """Residual parameters with their derivatives in the optimiser's parameters and log sigma."""

    def __init__(self, estimates: Estimates) -> None:
        found = residual_inference(estimates)
        self.covariance = parameter_covariance(VarianceParameters.of(estimates))[0]
        self.values, self.slopes, self.scales = found.values, found.slopes, found.scales
        self.unknown = np.isnan(np.diagonal(found.covariance))
        own = estimates.residual
        self.strata = 1 if own is None else own.covariance.strata
        self.levels = 1 if own is None else own.covariance.levels
        self.per_stratum = 0 if own is None else len(own.covariance.family.scales)
        self.has_sds = own is not None and has_sds(own.covariance)
        self.sigma = estimates.sigma
        self.last = np.eye(len(self.covariance))[-1]

    def natural(self, stratum: int, position: int) -> tuple[float, np.ndarray, bool, Scale]:
        """A parameter of the family: value, slopes, whether it is unknown, scale."""
        at = stratum * self.per_stratum + position
        return float(self.values[at]), self.slopes[at], bool(self.unknown[at]), self.scales[at]

    def sd(self, stratum: int, level: int) -> tuple[float, np.ndarray, bool, Scale]:
        """A standard deviation."""
        if not self.has_sds:
            return self.sigma, self.sigma * self.last, False, "log"
        at = self.strata * self.per_stratum + stratum * self.levels + level
        return float(self.values[at]), self.slopes[at], bool(self.unknown[at]), "log"

    def variance(self, stratum: int, level: int) -> tuple[float, np.ndarray, bool, Scale]:
        """Its square."""
        value, slopes, unknown, scale = self.sd(stratum, level)
        return value**2, 2 * value * slopes, unknown, scale

    def product(self, stratum: int, position: int, a: int, b: int) -> tuple[float, np.ndarray, bool, Scale]:
        """A covariance, of a correlation and two standard deviations."""
        rho, of_rho, unknown, _ = self.natural(stratum, position)
        (s, of_s, missing, _), (t, of_t, gone, _) = self.sd(stratum, a), self.sd(stratum, b)
        slopes = of_rho * s * t + rho * of_s * t + rho * s * of_t
        return rho * s * t, slopes, unknown or missing or gone, "identity"

    def parameter(self, label: str, found: tuple[float, np.ndarray, bool, Scale], level: float) -> Parameter:
        """A line of the table."""
        value, slopes, unknown, name = found
        moved = slopes != 0
        variance = slopes[moved] @ self.covariance[np.ix_(moved, moved)] @ slopes[moved]
        if unknown or not np.isfinite(variance):
            return Parameter(label, value, np.nan, np.nan, np.nan)
        error, scale = float(np.sqrt(variance)), SCALES[name]
        if not scale.low < value < scale.high:
            return Parameter(label, value, error, np.nan, np.nan)
        at = np.asarray(value)
        center, half = scale.forward(at), normal_quantile(level / 100) * error * abs(scale.slope(at))
        low, high = float(scale.inverse(center - half)), float(scale.inverse(center + half))
        return Parameter(label, value, error, low, high)


def _of_residuals(fit: Any, residual: ResidualRequest | None, level: float, sds: bool) -> Section:
    spread = "sd" if sds else "var"
    if residual is None or fit.estimates.residual is None:
        row = fit.variance_table(level / 100).iloc[-1]
        prefix = "sd_or_corr" if sds else ""
        columns = [prefix or "estimate"]
        columns += [f"{prefix}_{name}".strip("_") for name in ("std_error", "conf_low", "conf_high")]
        numbers = (float(row[column]) for column in columns)
        if residual is None:
            return Section((), (Parameter(f"{spread}(Residual)", *numbers),))
        return Section((f"Residual: {residual.title}",), (Parameter(f"{spread}(e)", *numbers),))
    found = _Residuals(fit.estimates)
    labels = fit.estimates.residual.labels
    strata = labels.strata if found.strata > 1 else ("",)
    title: tuple[str, ...] = (f"Residual: {residual.title}",)
    if residual.by is not None:
        title = (f"Residual: {residual.title},", f"    by {residual.by}")
    if residual.name == "independent":
        rows = [
            found.parameter(f"{name}: {spread}(e)", found.sd(0, at) if sds else found.variance(0, at), level)
            for at, name in enumerate(labels.levels)
        ]
        return Section(title, tuple(rows))
    rows = []
    for stratum, name in enumerate(strata):
        before = f"{name}: " if name else ""
        rows += [
            found.parameter(before + label, own, level)
            for label, own in _stratum(found, residual, labels, stratum, sds)
        ]
    return Section(title, tuple(rows))


def _stratum(
    found: _Residuals, residual: ResidualRequest, labels: Any, stratum: int, sds: bool
) -> list[tuple[str, tuple[float, np.ndarray, bool, Scale]]]:
    """Labels and parameters of one stratum."""
    spread = "sd" if sds else "var"
    one = found.sd(stratum, 0) if sds else found.variance(stratum, 0)
    own = range(found.per_stratum)
    if residual.name in ("unstructured", "banded"):
        return _by_time(found, residual, labels, stratum, sds)
    if residual.name == "exchangeable":
        pair = found.natural(stratum, 0) if sds else found.product(stratum, 0, 0, 0)
        return [(f"{spread}(e)", one), (f"{'corr' if sds else 'cov'}(e)", pair)]
    if residual.name == "exponential":
        return [("rho", found.natural(stratum, found.per_stratum - 1)), (f"{spread}(e)", one)]
    stem = {"ar": "phi", "ma": "theta", "toeplitz": "rho"}[residual.name]
    first_order = residual.name == "ar" and found.per_stratum == 1
    names = ["rho"] if first_order else [f"{stem}{at + 1}" for at in own]
    return [*((names[at], found.natural(stratum, at)) for at in own), (f"{spread}(e)", one)]


def _by_time(
    found: _Residuals, residual: ResidualRequest, labels: Any, stratum: int, sds: bool
) -> list[tuple[str, tuple[float, np.ndarray, bool, Scale]]]:
    times = labels.times
    size = len(times)
    rows = [
        (f"{'sd' if sds else 'var'}(e{time})", found.sd(stratum, at) if sds else found.variance(stratum, at))
        for at, time in enumerate(times)
    ]
    band = size - 1 if residual.order is None else residual.order
    # The fit's parameters are by rows below the diagonal, the table's by rows above it.
    pairs = [(a, b) for b in range(size) for a in range(max(0, b - band), b)]
    for a, b in sorted(pairs):
        position = pairs.index((a, b))
        own = found.natural(stratum, position) if sds else found.product(stratum, position, a, b)
        rows.append((f"{'corr' if sds else 'cov'}(e{times[a]},e{times[b]})", own))
    return rows
