"""Stata's `predict`: new variables from the current estimates.

``xb``, ``stdp`` and ``fitted`` are made from the variables as they are now, also in rows outside of the
estimation sample (``fitted`` there for groups that it has); everything else is for the estimation sample.

References
----------
StataCorp, Stata Multilevel Mixed-Effects Reference Manual, mixed postestimation (predict).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxmixed.residual_predictions import residual_variances
from jaxmixed.residual_whitening import whitened
from jaxmixed.stata_formats import count
from jaxmixed.stata_frame import storage_type
from jaxmixed.stata_levels import RandomLevel
from jaxmixed.stata_parameters import parameter_scores
from jaxmixed.stata_session import CommandSpec, Estimation, Session
from jaxmixed.stata_syntax import Option, Statement, Tokens
from jaxmixed.stata_variances import effect_positions

_AFTER: dict[str, tuple[str, ...]] = {
    "mixed": ("xb", "stdp", "fitted", "residuals", "rstandard", "reffects", "reses", "scores"),
    "regress": ("xb", "stdp", "residuals", "rstandard"),
    "xtreg": ("xb", "stdp"),
}
_OF_LEVELS = ("fitted", "residuals", "rstandard", "reffects", "reses")
_MOST_NEW = 1_000


@dataclass(frozen=True)
class Effect:
    """One random effect in Stata's order: level, name, term of the fit, column in the term."""

    level: RandomLevel
    name: str
    term: int
    column: int


def effects_of(estimates: Estimation) -> list[Effect]:
    """The random effects: levels from the outermost, slopes before the constant."""
    found = []
    for level in estimates.more["levels"]:
        if level.term is not None:
            number = term_number(estimates.fit, level)
            positions = effect_positions(level)
            found += [
                Effect(level, name, number, column)
                for name, column in zip(level.names, positions, strict=True)
            ]
    return found


def term_number(fit: Any, level: RandomLevel) -> int:
    """Position of a level's term among the terms of the estimates."""
    return next(at for at, term in enumerate(fit.estimates.terms) if term.frame_index == level.term)


def chosen_levels(statement: Statement, estimates: Estimation) -> list[RandomLevel] | None:
    """Levels that the option relevel() names, or None without it.

    Raises
    ------
    StataError
        If the model has no such level.
    """
    option = statement.option("relevel")
    if option is None:
        return None
    levels = estimates.more["levels"]
    wanted = statement.source(option.argument or ())
    names = list(dict.fromkeys(level.request.name for level in levels))
    full = [name for name in names if name == wanted] or [n for n in names if n.startswith(wanted)]
    if len(full) != 1:
        raise statement.error(
            option.argument,
            f"'{wanted}' is no level of the model; its levels are {', '.join(names) or 'none'}",
        )
    return [level for level in levels if level.request.name == full[0]]


def require_data(session: Session, statement: Statement, estimates: Estimation) -> None:
    """Refuse to go on where the data no longer have the rows or the variables of the fit.

    Raises
    ------
    StataError
    """
    if len(estimates.sample) != len(session.frame) or not estimates.sample.any():
        raise statement.error(None, "the data are others than those of the fit: fit the model to them first")
    more = estimates.more
    numeric = [more["response"], *more["design"].variables]
    names = []
    for level in more.get("levels", ()):
        numeric += level.design.variables
        names += level.grouping
    residual = more.get("residual")
    names += [name for name in (residual.time, residual.by) if name] if residual is not None else []
    for name in [*numeric, *names]:
        if name not in session.frame.columns or (name in numeric and session.is_text(name)):
            raise statement.error(
                None, f"variable '{name}' of the fit is gone, or is another one now: fit the model again"
            )


def predict(session: Session, statement: Statement) -> None:
    """Run ``predict``."""
    estimates = session.need_estimates(statement, *_AFTER)
    require_data(session, statement, estimates)
    asked = _asked(statement, estimates)
    kind = asked[0].name if asked else "xb"
    relevel = chosen_levels(statement, estimates) if statement.has("relevel") else None
    if relevel is not None and kind not in _OF_LEVELS:
        raise statement.error(
            statement.option("relevel").token,  # type: ignore[union-attr]
            f"relevel() goes with {', '.join(_OF_LEVELS)}, not with {kind}",
        )
    rows = session.sample(statement)
    errors = statement.option("reses")
    names_of_errors = errors.argument if errors is not None and kind == "reffects" else None
    columns = _columns(session, statement, estimates, kind, relevel)
    new = _new_names(session, statement, statement.arguments, len(columns), kind)
    if names_of_errors is not None:
        columns += _columns(session, statement, estimates, "reses", relevel)
        new += _new_names(session, statement, names_of_errors, len(columns) - len(new), "reses", new)
    if not asked:
        session.write(
            "(option xb assumed)" if estimates.command == "mixed" else "(option xb assumed; fitted values)"
        )
    values = {name: np.where(rows, column, np.nan) for name, column in zip(new, columns, strict=True)}
    session.frame = session.frame.assign(**values)
    for column in values.values():
        lacking = int(np.isnan(column).sum())
        if lacking:
            session.write(f"({count(lacking)} missing value{'s' if lacking > 1 else ''} generated)")


def _asked(statement: Statement, estimates: Estimation) -> list[Option]:
    """The options that say what is predicted; ``reses()`` beside ``reffects`` comes second."""
    possible = _AFTER[estimates.command]
    asked = [option for option in statement.options if option.name != "relevel"]
    for option in asked:
        if option.name not in possible:
            raise statement.error(
                option.token,
                f"{option.name} is not available after {estimates.command}; there are {', '.join(possible)}",
            )
    asked.sort(key=lambda option: option.name == "reses")
    both = [option.name for option in asked] == ["reffects", "reses"]
    if len(asked) > 1 and not (both and asked[1].argument):
        hint = "; standard errors beside reffects go into reses(newvar)" if both else ""
        raise statement.error(asked[1].token, f"predict makes one statistic at a time{hint}")
    if len(asked) == 1 and asked[0].name == "reses" and asked[0].argument:
        raise statement.error(asked[0].token, "reses(newvar) goes beside reffects; alone, write reses")
    if asked and asked[0].name == "scores" and estimates.e.get("method") != "ML":
        raise statement.error(asked[0].token, "scores are available after maximum likelihood (mle) only")
    return asked


def _columns(
    session: Session,
    statement: Statement,
    estimates: Estimation,
    kind: str,
    relevel: list[RandomLevel] | None,
) -> list[np.ndarray]:
    """Values (n,) in each row of the data, one array per new variable."""
    if kind == "xb":
        return [linear_prediction(session, estimates)]
    if kind == "stdp":
        return [standard_error(session, estimates)]
    if kind in ("reffects", "reses"):
        return _of_effects(statement, estimates, kind, relevel)
    if kind == "scores":
        return parameter_scores(statement, estimates)
    fitted = _fitted(session, estimates, relevel)
    if kind == "fitted":
        return [fitted]
    outcome = session.frame[estimates.more["response"]].to_numpy(dtype=np.float64)
    residuals = np.where(estimates.sample, outcome - fitted, np.nan)
    if kind == "residuals":
        return [residuals]
    return [_standardized(session, statement, estimates, residuals)]


def _design(session: Session, estimates: Estimation) -> tuple[np.ndarray, np.ndarray]:
    """Columns (n, k) of the fixed part that have a coefficient, and their positions in the inference."""
    design, inference = estimates.more["design"], estimates.more["inference"]
    position = {name: at for at, name in enumerate(estimates.more["names"])}
    kept = [
        (at, position[name])
        for at, name in enumerate(design.names)
        if name in position and inference.kept[position[name]]
    ]
    matrix = design.matrix(session.frame)
    return matrix[:, [at for at, _ in kept]], np.array([own for _, own in kept], dtype=int)


def linear_prediction(session: Session, estimates: Estimation) -> np.ndarray:
    """The fixed part (n,) in all rows of the data, NaN where a variable is missing."""
    columns, positions = _design(session, estimates)
    return np.asarray(columns @ estimates.more["inference"].beta[positions])


def standard_error(session: Session, estimates: Estimation) -> np.ndarray:
    """Standard error (n,) of the fixed part in all rows of the data."""
    columns, positions = _design(session, estimates)
    covariance = estimates.more["inference"].cov[np.ix_(positions, positions)]
    variance = np.einsum("ni,ij,nj->n", columns, covariance, columns)
    return np.sqrt(np.where(np.isnan(variance), np.nan, np.maximum(variance, 0.0)))


def from_fit(estimates: Estimation, values: np.ndarray) -> np.ndarray:
    """Values of the rows of the fit at the rows of the data, NaN outside of the sample."""
    position = estimates.position
    assert position is not None
    found = np.full(len(position), np.nan)
    found[estimates.sample] = values[position[estimates.sample]]
    return found


def _of_effects(
    statement: Statement, estimates: Estimation, kind: str, relevel: list[RandomLevel] | None
) -> list[np.ndarray]:
    fit = estimates.fit
    chosen = [e for e in effects_of(estimates) if relevel is None or any(e.level is own for own in relevel)]
    if not chosen:
        option = statement.option(kind) or statement.option("relevel")
        raise statement.error(option.token if option else None, "the model has no random effects there")
    if kind == "reffects":
        tables = list(fit._modes)
    else:
        known = "known" if estimates.e.get("method") == "ML" else "estimated"
        own = fit.ranef_se(known)
        tables, seen = [], dict.fromkeys(own, 0)
        for term in fit.estimates.terms:  # terms of one grouping stand side by side
            start = seen[term.group]
            seen[term.group] = start + len(term.names)
            tables.append(own[term.group].to_numpy()[:, start : seen[term.group]])
    found = []
    for effect in chosen:
        codes = fit.frame.groups[effect.level.term].codes
        found.append(from_fit(estimates, np.asarray(tables[effect.term])[codes, effect.column]))
    return found


def _fitted(session: Session, estimates: Estimation, relevel: list[RandomLevel] | None) -> np.ndarray:
    """Fixed part and random effects down to a level, (n,); NaN for groups that the sample lacks."""
    total = linear_prediction(session, estimates)
    levels = estimates.more.get("levels", ())
    if relevel is not None:
        last = max(at for at, level in enumerate(levels) if any(level is own for own in relevel))
        levels = levels[: last + 1]
    for level in levels:
        if level.term is None:
            continue
        number, columns = term_number(estimates.fit, level), effect_positions(level)
        modes = np.asarray(estimates.fit._modes[number])[:, columns]
        codes = _codes(session, estimates, level)
        Z = np.ones((len(total), 1)) if level.request.factor else level.design.matrix(session.frame)
        contribution = np.einsum("nq,nq->n", Z, modes[np.maximum(codes, 0)])
        total = total + np.where(codes >= 0, contribution, np.nan)
    return total


def _codes(session: Session, estimates: Estimation, level: RandomLevel) -> np.ndarray:
    """Group (n,) of each row of the data among those of the fit; -1 if it is not among them."""
    sample, position = estimates.sample, estimates.position
    assert position is not None
    if not level.grouping:
        own = np.zeros(len(session.frame), dtype=int)
    else:
        own = session.frame.groupby(list(level.grouping), sort=False).ngroup().fillna(-1).to_numpy(dtype=int)
    table = np.full(own.max(initial=-1) + 2, -1)  # the last one is for rows without a group
    table[own[sample]] = estimates.fit.frame.groups[level.term].codes[position[sample]]
    table[-1] = -1
    return table[own]


def _standardized(
    session: Session, statement: Statement, estimates: Estimation, residuals: np.ndarray
) -> np.ndarray:
    """Residuals times the inverse root of their covariance."""
    fit = estimates.fit
    if estimates.command == "regress":
        return residuals / np.sqrt(_residual_variance(session, estimates))
    frame, found = fit.frame, fit.estimates
    values = np.full(len(frame.y), np.nan)
    assert estimates.position is not None
    values[estimates.position[estimates.sample]] = residuals[estimates.sample]
    if found.residual is None:
        return from_fit(estimates, values / np.sqrt(residual_variances(frame, found)))
    if np.isnan(values).any():
        raise statement.error(
            None, "rstandard of correlated residuals needs all rows of the estimation sample in the data"
        )
    own = whitened(frame.residual.design, found.residual.free, frame.weights, values[:, None])[:, 0]
    return from_fit(estimates, own / found.sigma)


def _residual_variance(session: Session, estimates: Estimation) -> np.ndarray:
    """Of the residuals of a regression: s squared (1 - h)."""
    error = float(estimates.e["rmse"]) ** 2
    columns, _ = _design(session, estimates)
    own = columns[estimates.sample]
    Q = np.linalg.qr(own)[0]
    variance = np.full(len(columns), np.nan)
    variance[estimates.sample] = error * (1 - np.einsum("nk,nk->n", Q, Q))
    return variance


def _new_names(
    session: Session,
    statement: Statement,
    tokens: Tokens,
    size: int,
    kind: str,
    taken: Sequence[str] = (),
) -> list[str]:
    """Names of the new variables: as many as there are columns, or one stub with a star."""
    _, tokens = storage_type(tokens)
    variables = session.variables(statement)
    if not tokens:
        raise statement.error(None, "predict needs the name of a new variable, as in predict yhat, xb")
    if len(tokens) == 2 and tokens[0].kind == "name" and tokens[1].kind == "*":
        stub = tokens[0].value
        found = [f"{stub}{number + 1}" for number in range(size)]
        existing = [name for name in found if name in session.frame.columns or name in taken]
        if existing:
            raise statement.error(tokens, f"variable '{existing[0]}' exists already")
        variables.new(tokens[0]) if stub not in session.frame.columns else None
        return found
    found = [variables.new(token) for token in tokens]
    if len({*found, *taken}) < len(found) + len(taken):
        raise statement.error(tokens, "a new variable is named twice")
    if len(found) != size:
        raise statement.error(
            tokens, f"{kind} makes {size} new variable{'s' if size > 1 else ''}: name as many, or write stub*"
        )
    return found


COMMANDS = {
    "predict": CommandSpec(
        "predict",
        predict,
        options={
            "xb": ("xb", False),
            "stdp": ("stdp", False),
            "fitted": ("fit", False),
            "residuals": ("r", False),
            "rstandard": ("rsta", False),
            "reffects": ("ref", False),
            "reses": ("reses", None),
            "scores": ("sc", False),
            "relevel": ("relev", True),
        },
        condition=True,
    )
}
