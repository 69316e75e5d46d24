"""The command `regress`, and what it shares with its panel versions.

References
----------
StataCorp, Stata Base Reference Manual, regress (Methods and formulas).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed.denominators import FixedDf
from jaxmixed.errors import RankDeficientWarning, SingularFitWarning
from jaxmixed.fixed_inference import FixedInference
from jaxmixed.model import mixed
from jaxmixed.stata_design import Design, design_of, variables_of
from jaxmixed.stata_factors import terms
from jaxmixed.stata_formats import count, fixed, general, significant
from jaxmixed.stata_mixed import coefficient_rows, stata_names, wald_test
from jaxmixed.stata_model import check_not_empty, present, read_level
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Statement, abbreviated
from jaxmixed.stata_tables import (
    cluster_line,
    coefficient_table,
    effect_lines,
)
from jaxmixed.terms import Column

LEVEL = {"level": ("l", True), "noconstant": ("nocons", False), "noheader": ("nohead", False)}


@dataclass(frozen=True)
class Linear:
    """A response and its effects in an estimation sample."""

    response: str
    design: Design
    sample: np.ndarray
    frame: pd.DataFrame
    level: float

    @property
    def y(self) -> np.ndarray:
        """The response (n,)."""
        return self.frame[self.response].to_numpy(dtype=np.float64)

    @property
    def effects(self) -> Design:
        """The effects without the constant."""
        return replace(self.design, constant=False)

    def fit(self, method: str, group: str | None = None) -> Any:
        """The model by maximum or restricted maximum likelihood, perhaps with a random intercept."""
        columns = {column.name: column.values(self.frame) for column in self.design.columns}
        data = self.frame.assign(**columns)
        if group is not None and self.frame[group].dtype.kind == "f":
            data = data.assign(**{group: pd.factorize(self.frame[group], sort=True)[0]})
        parts = ["1" if self.design.constant else "0", *(Column(name).label for name in columns)]
        parts += [f"(1 | {Column(group).label})"] if group else []
        with warnings.catch_warnings():
            # The tables have notes of their own about these.
            warnings.simplefilter("ignore", SingularFitWarning)
            warnings.filterwarnings("ignore", ".*dropped", RankDeficientWarning)
            return mixed(f"{Column(self.response).label} ~ {' + '.join(parts)}", data, method=method)


def read(session: Session, statement: Statement, *further: str) -> Linear:
    """Response, effects and sample of a statement; rows with a missing value in `further` are left out."""
    if not statement.arguments:
        raise statement.error(None, f"{statement.command} needs a response, as in: {statement.command} y x")
    response = session.varlist(statement, statement.arguments[:1], numeric=True)[0]
    effects = terms(statement, statement.arguments[1:], session.variables(statement))
    sample = session.sample(statement) & present(session, [response, *variables_of(effects), *further])
    if not sample.any():
        raise statement.error(None, "no rows are left: all are missing a value, or excluded by if and in")
    frame = session.frame.loc[sample].reset_index(drop=True)
    constant = not statement.has("noconstant")
    design = design_of(statement, effects, frame, session.state.labels, constant)
    check_not_empty(statement, design)
    return Linear(response, design, sample, frame, read_level(statement))


def estimation_of(
    statement: Statement,
    linear: Linear,
    fit: Any,
    inference: FixedInference,
    e: dict[str, float | str],
    names: tuple[str, ...],
    **more: Any,
) -> Estimation:
    """What a linear command leaves behind, its coefficients by Stata's names."""
    rows = coefficient_rows(names, inference, linear.level)
    own: dict[str, Any] = {
        "design": linear.design,
        "inference": inference,
        "names": names,
        "rows": rows,
        "omitted": [name for at, name in enumerate(names) if not inference.kept[at]],
        "response": linear.response,
        "levels": [],
        "residual": None,
        "robust": False,
        **more,
    }
    results: dict[str, float | str] = {
        "cmd": statement.command,
        "cmdline": statement.text,
        "depvar": linear.response,
        "N": float(len(linear.frame)),
        **e,
    }
    b = {name: row.estimate for name, row in rows.items()}
    se = {name: row.std_error for name, row in rows.items()}
    return Estimation(statement.command, statement, fit, linear.sample, results, b, se, own)


def finish(session: Session, estimation: Estimation, head: list[str], table: list[str]) -> None:
    """Keep the results, and print notes, header and table."""
    notes = [f"note: {name} omitted because of collinearity." for name in estimation.more["omitted"]]
    lines = [*notes, *([] if estimation.statement.has("noheader") else ["", *head]), "", *table]
    session.estimates = estimation
    session.write("\n".join(lines))


def run_regress(session: Session, statement: Statement) -> None:
    """Least squares with t and F tests."""
    kind, cluster = _vce(session, statement)
    linear = read(session, statement, *([cluster] if cluster else []))
    restricted = linear.fit("reml")
    names = stata_names(restricted)
    inference = restricted.fixed_inference("residual")
    n, rank = len(linear.frame), int(inference.kept.sum())
    if n <= rank:
        raise statement.error(None, f"{n} rows cannot determine {rank} coefficients and a variance")
    if cluster and linear.frame[cluster].nunique() < 2:
        raise statement.error(None, f"there is one cluster only, one value of '{cluster}'")
    clusters = pd.factorize(linear.frame[cluster])[0] if cluster else np.arange(n)
    if kind != "ols":
        inference = _sandwich(linear, restricted, inference, clusters, bool(cluster))
    y, fitted = linear.y, restricted.fittedvalues.to_numpy()
    center = float(y.mean()) if linear.design.constant else 0.0
    rss = float(((y - fitted) ** 2).sum())
    total = float(((y - center) ** 2).sum())
    num_df, _, statistic, p_value = wald_test(names, inference)
    df_residual, df_total = n - rank, n - linear.design.constant
    r2 = 1 - rss / total
    e: dict[str, float | str] = {
        "title": "Linear regression",
        "vce": kind,
        "df_m": float(num_df),
        "df_r": float(clusters.max() if cluster else df_residual),
        "F": statistic,
        "p": p_value,
        "r2": r2,
        "r2_a": 1 - (1 - r2) * df_total / df_residual,
        "rmse": float(np.sqrt(rss / df_residual)),
        "mss": total - rss,
        "rss": rss,
        "rank": float(rank),
    }
    fit = linear.fit("ml")
    e |= {"ll": float(fit.llf), "ll_0": _constant_llf(total, n)}
    if cluster:
        e |= {"N_clust": float(clusters.max() + 1), "clustvar": cluster}
    estimation = estimation_of(statement, linear, fit, inference, e, names, robust=kind != "ols")
    head = _robust_head(e, n) if kind != "ols" else _anova_head(e, n, df_total, df_residual, num_df)
    lines = effect_lines(linear.design, estimation.more["rows"], estimation.more["omitted"])
    table = coefficient_table(linear.response, lines, statistic="t", level=linear.level, robust=kind != "ols")
    if cluster:
        table = [cluster_line(clusters.max() + 1, cluster), *table]
    finish(session, estimation, head, table)


def _constant_llf(total: float, n: int) -> float:
    """Log-likelihood of the model with a constant only, of sum of squares `total`."""
    return -n / 2 * (np.log(2 * np.pi * total / n) + 1)


def _vce(session: Session, statement: Statement) -> tuple[str, str | None]:
    """Kind of the covariance, and the variable of clusters."""
    option = statement.option("vce")
    if option is None:
        return ("robust", None) if statement.has("robust") else ("ols", None)
    tokens = option.argument or ()
    full = abbreviated(tokens[0].value, {"ols": "ols", "robust": "r", "cluster": "cl"}) if tokens else None
    if full is None or len(tokens) != 1 + (full == "cluster"):
        raise statement.error(tokens or option.token, "vce() takes ols, robust, or cluster and a variable")
    return full, session.variables(statement).one(tokens[1]) if full == "cluster" else None


def _sandwich(
    linear: Linear, fit: Any, inference: FixedInference, clusters: np.ndarray, clustered: bool
) -> FixedInference:
    """Inference with robust standard errors."""
    kept = inference.kept
    X = np.asarray(fit.frame.X)[:, kept]
    scores = X * (linear.y - fit.fittedvalues.to_numpy())[:, None]
    m, (n, p) = int(clusters.max()) + 1, X.shape
    sums = np.zeros((m, p))
    np.add.at(sums, clusters, scores)
    bread = np.linalg.inv(X.T @ X)
    # Clusters of one row each give n / (n - p).
    own = bread @ (sums.T @ sums) @ bread * (m / (m - 1) * (n - 1) / (n - p))
    cov = np.full((len(kept), len(kept)), np.nan)
    cov[np.ix_(kept, kept)] = own
    df = float(m - 1 if clustered else n - p)
    return replace(inference, cov=cov, reference=FixedDf(own, np.full(p, df)), ddf="robust", title="robust")


def _anova_head(e: dict[str, float | str], n: int, total: int, residual: int, model: int) -> list[str]:
    """The analysis of variance and the facts beside it."""
    mss, rss = float(e["mss"]), float(e["rss"])
    facts = [
        ("Number of obs", count(n)),
        (f"F({model}, {residual})", fixed(e["F"], 2)),
        ("Prob > F", fixed(e["p"], 4)),
        ("R-squared", fixed(e["r2"], 4)),
        ("Adj R-squared", fixed(e["r2_a"], 4)),
        ("Root MSE", significant(e["rmse"])),
    ]
    mean = mss / model if model else np.nan
    left = [
        "      Source |       SS           df       MS      ",
        "-------------+----------------------------------   ",
        _source("Model", mss, model, mean),
        _source("Residual", rss, residual, rss / residual),
        "-------------+----------------------------------   ",
        _source("Total", mss + rss, total, (mss + rss) / total),
    ]
    return [f"{text:<51}{label:<16}={value:>10}" for text, (label, value) in zip(left, facts, strict=True)]


def _source(name: str, total: float, df: int, mean: float) -> str:
    return f"{name:>12} |{general(total, 11):>12}{df:>10,}{general(mean, 11):>12}"


def _robust_head(e: dict[str, float | str], n: int) -> list[str]:
    facts = [
        ("Number of obs", count(n)),
        (f"F({e['df_m']:.0f}, {e['df_r']:.0f})", fixed(e["F"], 2)),
        ("Prob > F", fixed(e["p"], 4)),
        ("R-squared", fixed(e["r2"], 4)),
        ("Root MSE", significant(e["rmse"])),
    ]
    return aligned(["Linear regression"], facts)


def aligned(left: list[str], facts: list[tuple[str, str]]) -> list[str]:
    """Facts at fixed columns, as in the headers that do not adjust to their values."""
    left = left + [""] * (len(facts) - len(left))
    return [
        f"{text:<48}{label:<18}={value:>11}" if label else text.rstrip()
        for text, (label, value) in zip(left, facts, strict=True)
    ]


COMMANDS = {
    "regress": CommandSpec(
        "reg", run_regress, {**LEVEL, "vce": ("vce", True), "robust": ("r", False)}, condition=True
    )
}
