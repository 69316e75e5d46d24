"""Panel versions of linear regression: `xtreg` with re, fe and mle, and `xttest0`.

The coefficients of `xtreg, re` are generalised least squares with Swamy and Arora's estimates of the
variances, those of `xtreg, fe` least squares on deviations from the means of the panels; `xtreg, mle` is
`mixed` with a random intercept.

References
----------
StataCorp, Stata Longitudinal-Data/Panel-Data Reference Manual, xtreg and xtreg
postestimation (Methods and formulas). Swamy & Arora (1972), Econometrica 40(2), 261-275. Baltagi & Li (1990),
Econometric Reviews 9(1), 103-107.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import pandas as pd

from jaxmixed._distributions import chi2_p_value, f_p_value, normal_quantile
from jaxmixed.denominators import FixedDf
from jaxmixed.fixed_inference import FixedInference
from jaxmixed.linalg import independent_columns
from jaxmixed.stata_design import CONSTANT, Design
from jaxmixed.stata_formats import abbreviated_name, count, fixed, general
from jaxmixed.stata_linear import LEVEL, Linear, aligned, estimation_of, finish, read
from jaxmixed.stata_mixed import search_warnings, stata_names, wald_test
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement
from jaxmixed.stata_tables import (
    Row,
    coefficient_table,
    effect_lines,
    ends,
    group_sizes,
    header,
    numbers,
    rule,
)

COLLINEAR = 1e-9
"""A column whose part orthogonal to earlier ones is this share of its length depends on them."""

_EXACT = 1e-26
"""A share of the sum of squares that is rounding."""


def run_xtreg(session: Session, statement: Statement) -> None:
    """Panel regression with random or fixed effects."""
    kinds = [name for name in ("re", "fe", "mle") if statement.has(name)]
    if len(kinds) > 1:
        raise statement.error(statement.options[-1].token, "re, fe and mle exclude each other")
    kind = kinds[0] if kinds else "re"
    panel = _panel(session, statement)
    linear = read(session, statement, panel)
    if not linear.design.constant:
        raise statement.error(None, f"xtreg, {kind} has a constant: leave noconstant out")
    {"re": _random_effects, "fe": _fixed_effects, "mle": _maximum_likelihood}[kind](
        session, statement, linear, panel
    )


def _panel(session: Session, statement: Statement) -> str:
    option = statement.option("i")
    if option is not None:
        names = session.varlist(statement, option.argument or ())
        if len(names) != 1:
            raise statement.error(option.token, "i() takes one variable")
        return names[0]
    panel = session.state.panel
    if panel is None:
        raise statement.error(None, "xtreg needs the panel variable: write xtset before, or i(variable)")
    return panel[0]


@dataclass(frozen=True)
class _Panels:
    """Panels of a sample: codes of rows, sizes, and the columns that are linearly independent."""

    codes: np.ndarray
    sizes: np.ndarray

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.sizes)

    def means(self, values: np.ndarray) -> np.ndarray:
        """Means of columns (n, k), or of values (n,), in each panel."""
        total = np.zeros((self.number, *values.shape[1:]))
        np.add.at(total, self.codes, values)
        return total / (self.sizes if values.ndim == 1 else self.sizes[:, None])

    def within(self, values: np.ndarray) -> np.ndarray:
        """Deviations from the means of the panels."""
        return values - self.means(values)[self.codes]


def _panels(linear: Linear, panel: str) -> _Panels:
    codes = pd.factorize(linear.frame[panel], sort=True)[0]
    return _Panels(codes, np.bincount(codes))


def _squares(
    X: np.ndarray, y: np.ndarray, whole: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Coefficients (NaN where dependent on earlier ones), which are kept, inverse of X'X, sum of squares.

    `whole` are the columns of which X are the deviations from something: one that is all gone but for
    rounding is dependent.
    """
    kept = np.zeros(X.shape[1], dtype=bool)
    if X.shape[1]:
        kept[independent_columns(X, COLLINEAR * np.linalg.norm(X if whole is None else whole, axis=0))] = True
    Q, R = np.linalg.qr(X[:, kept])
    beta = np.full(X.shape[1], np.nan)
    beta[kept] = np.linalg.solve(R, Q.T @ y) if kept.any() else []
    inverse = np.linalg.inv(R)
    return beta, kept, inverse @ inverse.T, float(((y - Q @ (Q.T @ y)) ** 2).sum())


def _check_varies(statement: Statement, rss: float, deviations: np.ndarray) -> None:
    """Refuse data whose rows the effects reproduce exactly."""
    if rss <= _EXACT * float(deviations @ deviations):
        raise statement.error(None, "the residual variance is zero: the effects reproduce every row")


def _as_inference(
    names: tuple[str, ...], beta: np.ndarray, cov: np.ndarray, kept: np.ndarray, df: float
) -> FixedInference:
    """Inference on coefficients that are not a mixed model's."""
    whole = np.full((len(names), len(names)), np.nan)
    whole[np.ix_(kept, kept)] = cov
    return FixedInference(
        names, beta, whole, "none", FixedDf(cov, np.full(int(kept.sum()), df)), np.eye(len(names))[~kept]
    )


def _r_squared(linear: Linear, panels: _Panels, beta: np.ndarray) -> dict[str, float | str]:
    """Squared correlations within and between panels, and of all rows."""
    fitted = linear.effects.matrix(linear.frame)[:, ~np.isnan(beta)] @ beta[~np.isnan(beta)]
    pairs = {
        "r2_w": (panels.within(fitted), panels.within(linear.y)),
        "r2_b": (panels.means(fitted), panels.means(linear.y)),
        "r2_o": (fitted, linear.y),
    }
    return {name: _correlation(a, b) ** 2 for name, (a, b) in pairs.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 1e-12 * max(1.0, float(np.abs(a).max()) ** 2) else float("nan")


def _random_effects(session: Session, statement: Statement, linear: Linear, panel: str) -> None:
    panels, y, X = _panels(linear, panel), linear.y, linear.design.matrix(linear.frame)
    n, m = len(y), panels.number
    slopes = X[:, :-1]
    _, kept, _, within = _squares(panels.within(slopes), panels.within(y), slopes)
    free = n - m - int(kept.sum())
    _, of_means, _, between = _squares(np.column_stack([np.ones(m), panels.means(slopes)]), panels.means(y))
    if free <= 0 or m <= of_means.sum():
        raise statement.error(None, f"{n} rows in {m} panels are too few for both variances")
    _check_varies(statement, within, panels.within(y))
    sigma2 = within / free
    harmonic = m / float((1 / panels.sizes).sum())
    u2 = max(0.0, between / (m - int(of_means.sum())) - sigma2 / harmonic)
    theta = 1 - np.sqrt(sigma2 / (panels.sizes * u2 + sigma2))
    share = theta[panels.codes]
    # The constant first, so that it is kept; the table has it last.
    order = [X.shape[1] - 1, *range(X.shape[1] - 1)]
    Z = (X - share[:, None] * panels.means(X)[panels.codes])[:, order]
    beta, kept, inverse, rss = _squares(Z, y - share * panels.means(y)[panels.codes])
    names = (CONSTANT, *linear.design.names[:-1])
    cov = inverse * rss / (n - int(kept.sum()))
    inference = _as_inference(names, beta, cov, kept, np.inf)
    num_df, _, chi2, p_value = wald_test(names, inference)
    e: dict[str, float | str] = {
        "model": "re",
        "ivar": panel,
        "N_g": float(m),
        "sigma_u": float(np.sqrt(u2)),
        "sigma_e": float(np.sqrt(sigma2)),
        "rho": u2 / (u2 + sigma2),
        "df_m": float(num_df),
        "chi2": chi2 if num_df else 0.0,
        "p": p_value,
        "rank": float(kept.sum()),
        **_r_squared(linear, panels, beta[1:]),
    }
    if np.ptp(panels.sizes) == 0:
        e["theta"] = float(theta[0])
    estimation = estimation_of(statement, linear, None, inference, e, names, panel=panel, sample=linear)
    left = f"corr(u_i, X) = {fixed(0, 0)} (assumed)"
    facts = [(f"Wald chi2({num_df})", fixed(e["chi2"], 2)), ("Prob > chi2", fixed(p_value, 4))]
    head = _panel_head("Random-effects GLS regression", e, panels, linear, panel, left, facts)
    if statement.has("theta"):
        head += _theta_lines(theta)
    finish(session, estimation, head, _panel_table(linear, estimation, "z"))


def _theta_lines(theta: np.ndarray) -> list[str]:
    """Shares of the panels' means that were subtracted."""
    if np.ptp(theta) == 0:
        return [f"theta          = {general(theta[0])}"]
    shown = np.quantile(theta, [0.0, 0.05, 0.5, 0.95, 1.0], method="averaged_inverted_cdf")
    widths = (6, 9, 11, 13, 9)
    return [
        "",
        f"{'-' * 19} theta {'-' * 20}",
        "  min      5%       median        95%      max",
        "".join(f"{fixed(value, 4):>{width}}" for value, width in zip(shown, widths, strict=True)),
    ]


def _fixed_effects(session: Session, statement: Statement, linear: Linear, panel: str) -> None:
    panels, y, X = _panels(linear, panel), linear.y, linear.effects.matrix(linear.frame)
    n, m = len(y), panels.number
    beta, kept, inverse, rss = _squares(panels.within(X), panels.within(y), X)
    k = int(kept.sum())
    free = n - m - k
    if free <= 0:
        raise statement.error(None, f"{n} rows cannot determine {m} panels, {k} coefficients and a variance")
    if m < 2:
        raise statement.error(None, f"there is one panel only, one value of '{panel}'")
    _check_varies(statement, rss, panels.within(y))
    sigma2 = rss / free
    center = X.mean(axis=0)[kept]
    constant = float(y.mean() - center @ beta[kept])
    own = np.zeros((k + 1, k + 1))
    own[1:, 1:] = inverse
    own[0, 1:] = own[1:, 0] = -inverse @ center
    own[0, 0] = 1 / n + center @ inverse @ center
    names = (CONSTANT, *linear.effects.names)
    inference = _as_inference(
        names, np.append(constant, beta), own * sigma2, np.append(True, kept), float(free)
    )
    num_df, _, statistic, p_value = wald_test(names, inference)
    u = panels.means(y) - constant - panels.means(X)[:, kept] @ beta[kept]
    *_, pooled = _squares(np.column_stack([np.ones(n), X]), y)
    pooled_rank = 1 + k
    F = ((pooled - rss) / (m - 1)) / sigma2
    e: dict[str, float | str] = {
        "model": "fe",
        "ivar": panel,
        "N_g": float(m),
        "sigma_u": float(u.std(ddof=1)),
        "sigma_e": float(np.sqrt(sigma2)),
        "df_m": float(num_df),
        "df_r": float(free),
        "F": statistic if num_df else 0.0,
        "p": p_value,
        "F_f": F,
        "p_f": f_p_value(F, m - 1, free),
        "rank": float(pooled_rank),
        "corr": _correlation(u[panels.codes], X[:, kept] @ beta[kept]) if k else np.nan,
        **_r_squared(linear, panels, beta),
    }
    e["rho"] = float(e["sigma_u"]) ** 2 / (float(e["sigma_u"]) ** 2 + sigma2)
    e["ll"] = -n / 2 * (np.log(2 * np.pi * rss / n) + 1)
    estimation = estimation_of(statement, linear, None, inference, e, names, panel=panel, sample=linear)
    left = f"corr(u_i, Xb) = {fixed(e['corr'], 4):>6}"
    facts = [(f"F({num_df}, {free})", fixed(e["F"], 2)), ("Prob > F", fixed(p_value, 4))]
    head = _panel_head("Fixed-effects (within) regression", e, panels, linear, panel, left, facts)
    text = f"F test that all u_i=0: F({m - 1}, {free}) = {fixed(F, 2)}"
    last = ends(text, f"Prob > F = {fixed(e['p_f'], 4)}")
    finish(session, estimation, head, [*_panel_table(linear, estimation, "t"), last])


def _panel_head(
    title: str,
    e: dict[str, float | str],
    panels: _Panels,
    linear: Linear,
    panel: str,
    left: str,
    facts: list[tuple[str, str]],
) -> list[str]:
    sizes = panels.sizes
    texts = [
        title,
        f"Group variable: {abbreviated_name(panel)}",
        "",
        f"{'R-squared:':<48}Obs per group:",
        f"     Within  = {fixed(e['r2_w'], 4):>6}",
        f"     Between = {fixed(e['r2_b'], 4):>6}",
        f"     Overall = {fixed(e['r2_o'], 4):>6}",
        "",
        "",
        left,
    ]
    right = [
        ("Number of obs", count(len(linear.frame))),
        ("Number of groups", count(panels.number)),
        ("", ""),
        ("", ""),
        (f"{'min':>17}", count(sizes.min())),
        (f"{'avg':>17}", f"{sizes.mean():,.1f}"),
        (f"{'max':>17}", count(sizes.max())),
        ("", ""),
        *facts,
    ]
    return aligned(texts, right)


def _panel_table(linear: Linear, estimation: Estimation, statistic: str) -> list[str]:
    e = estimation.e
    lines = effect_lines(linear.design, estimation.more["rows"], estimation.more["omitted"])
    table = coefficient_table(linear.response, lines, statistic=statistic, level=linear.level, is_open=True)
    width = len(table[0]) - 66
    table.append(rule(width))
    for name in ("sigma_u", "sigma_e", "rho"):
        text = "   (fraction of variance due to u_i)" if name == "rho" else ""
        table.append(f"{name:>{width}} | {general(e[name], 10):>10}{text}")
    return [*table, "-" * len(table[0])]


def _maximum_likelihood(session: Session, statement: Statement, linear: Linear, panel: str) -> None:
    panels, fit = _panels(linear, panel), linear.fit("ml", panel)
    names, inference = stata_names(fit), fit.fixed_inference("none")
    level = linear.level / 100
    num_df = int(inference.kept.sum()) - 1
    constant = replace(linear, design=Design((), True)).fit("ml", panel) if num_df else fit
    chi2 = max(0.0, 2 * float(fit.llf - constant.llf))
    p_value = chi2_p_value(chi2, num_df) if num_df else np.nan
    table = fit.variance_table(level)
    icc = fit.icc(level=level).iloc[0]
    columns = ["sd_or_corr", "sd_or_corr_std_error", "sd_or_corr_conf_low", "sd_or_corr_conf_high"]
    numbers_of = {
        "/sigma_u": [float(table.iloc[0][column]) for column in columns],
        "/sigma_e": [float(table.iloc[-1][column]) for column in columns],
        "rho": with_probit_limits(float(icc["estimate"]), float(icc["std_error"]), level),
    }
    linear_llf = float(fit.estimates.linear_llf)
    lr = max(0.0, 2 * (float(fit.llf) - linear_llf))
    p_lr = 0.5 * chi2_p_value(lr, 1) if lr > 0 else 1.0
    e: dict[str, float | str] = {
        "model": "ml",
        "method": "ML",
        "ivar": panel,
        "N_g": float(panels.number),
        "ll": float(fit.llf),
        "ll_0": float(constant.llf),
        "ll_c": linear_llf,
        "df_m": float(num_df),
        "chi2": chi2,
        "p": p_value,
        "chi2_c": lr,
        "sigma_u": numbers_of["/sigma_u"][0],
        "sigma_e": numbers_of["/sigma_e"][0],
        "rho": numbers_of["rho"][0],
        "rank": float(fit.num_params),
    }
    estimation = estimation_of(statement, linear, fit, inference, e, names, panel=panel, sample=linear)
    sizes = panels.sizes
    test = "LR" if num_df else "Wald"
    head = header(
        ["Random-effects ML regression", f"Group variable: {abbreviated_name(panel)}", "",
         "Random effects u_i ~ Gaussian", "", "", "", "", "", f"Log likelihood = {general(fit.llf, 10):>10}"],
        [("Number of obs", count(len(linear.frame))), ("Number of groups", count(panels.number)), "",
         *group_sizes(int(sizes.min()), float(sizes.mean()), int(sizes.max())), "",
         (f"{test} chi2({num_df})", fixed(chi2, 2)), ("Prob > chi2", fixed(p_value, 4))],
    )  # fmt: skip
    lines = effect_lines(linear.design, estimation.more["rows"], estimation.more["omitted"])
    shown = coefficient_table(linear.response, lines, level=linear.level, is_open=True)
    width = len(shown[0]) - 66
    shown.append(rule(width))
    for name, (value, error, low, high) in numbers_of.items():
        row = numbers(Row(name, value, error, 0.0, 0.0, low, high))
        shown.append(f"{name:>{width}} |{row[:22]}{'':17}{row[39:]}")
    last = ends(f"LR test of sigma_u=0: chibar2(01) = {fixed(lr, 2)}", f"Prob >= chibar2 = {fixed(p_lr, 3)}")
    finish(session, estimation, head, [*shown, "-" * len(shown[0]), last, *search_warnings(fit, [])])


def with_probit_limits(value: float, error: float, level: float) -> list[float]:
    """A share with its standard error and limits symmetric on the probit scale, as xtreg has them."""
    if not 0 < value < 1:
        return [value, error, float("nan"), float("nan")]
    normal = NormalDist()
    center = normal.inv_cdf(value)
    half = normal_quantile(level) * error / normal.pdf(center)
    return [value, error, normal.cdf(center - half), normal.cdf(center + half)]


def run_xttest0(session: Session, statement: Statement) -> None:
    """Breusch and Pagan's Lagrange multiplier test, after xtreg, re."""
    estimation = session.need_estimates(statement, "xtreg")
    if estimation.e.get("model") != "re":
        raise statement.error(None, "xttest0 is available after xtreg with the option re")
    linear: Linear = estimation.more["sample"]
    panel, e = str(estimation.e["ivar"]), estimation.e
    panels, y, X = _panels(linear, panel), linear.y, linear.design.matrix(linear.frame)
    beta, kept, _, rss = _squares(X[:, ::-1], y)
    residuals = y - X[:, ::-1][:, kept] @ beta[kept]
    n = len(y)
    sums = panels.means(residuals) * panels.sizes
    excess = float(sums @ sums) / rss - 1
    lm = n**2 / 2 * excess**2 / (float(panels.sizes @ panels.sizes) - n) if excess > 0 else 0.0
    p_value = 0.5 * chi2_p_value(lm, 1) if lm > 0 else 1.0
    response = linear.response
    rows = [
        (response, float(y.var(ddof=1))),
        ("e", float(e["sigma_e"]) ** 2),
        ("u", float(e["sigma_u"]) ** 2),
    ]
    lines = [
        "",
        "Breusch and Pagan Lagrangian multiplier test for random effects",
        "",
        f"        {response}[{panel},t] = Xb + u[{panel}] + e[{panel},t]",
        "",
        "        Estimated results:",
        f"{'':25}|{'Var':>10}     SD = sqrt(Var)",
        f"{'':16}---------+-----------------------------",
        *(f"{abbreviated_name(name):>24} |{general(v):>11}{general(np.sqrt(v)):>15}" for name, v in rows),
        "",
        "        Test: Var(u) = 0",
        f"{'chibar2(01) =':>34}{fixed(lm, 2):>9}",
        f"{'Prob > chibar2 =':>34}{fixed(p_value, 4):>9}",
    ]
    session.r = {"lm": lm, "df": 1.0, "p": p_value}
    session.write("\n".join(lines))


_OPTIONS: dict[str, tuple[str, bool | None]] = {
    **LEVEL,
    "re": ("re", False),
    "fe": ("fe", False),
    "mle": ("ml", False),
    "theta": ("th", False),
    "i": ("i", True),
    "nolog": ("nolog", False),
}

COMMANDS = {
    "xtreg": CommandSpec("xtreg", run_xtreg, _OPTIONS, condition=True),
    "xttest0": CommandSpec("xttest0", run_xttest0),
}
