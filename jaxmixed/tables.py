"""The tables of a fit: coefficients, variance parameters, and the printed summary."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jaxmixed.certificate_advice import ADVICE, boundary_advice, summary_line
from jaxmixed.comparison import linear_model_test
from jaxmixed.errors import DataError, printable
from jaxmixed.fixed_inference import FixedInference, JointTest, linear_table
from jaxmixed.formatting import (
    WIDTH,
    Table,
    count,
    counted,
    display_width,
    number,
    p_number,
    p_phrase,
    wrapped,
)
from jaxmixed.inference import (
    NaturalParameters,
    VarianceInference,
    VarianceParameters,
    joined,
    natural_parameters,
    variance_table,
)
from jaxmixed.optimality import boundary_components
from jaxmixed.residual_inference import residual_inference
from jaxmixed.residual_tables import (
    parameter_table,
    residual_group,
    residual_notes,
    sigma_label,
    structure_in_words,
    summary_tables,
)
from jaxmixed.weighted_samples import is_pseudo_likelihood, weights_notes

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates, TermEstimate
    from jaxmixed.frame import GroupDesign, ModelFrame

Scale = Literal["variance", "sd"]
_FEW_LEVELS = 5
_MOST_ADVICE = 2
_METHODS = {"ml": "maximum likelihood (ML)", "reml": "restricted maximum likelihood (REML)"}


@dataclass(frozen=True, slots=True, eq=False)
class RandomTerm:
    """Estimated covariance of the random effects of one term.

    Parameters
    ----------
    group
        Grouping, e.g. ``"school"`` or ``"school:class"``.
    names
        Names of the effects.
    structure
        Covariance structure: unstructured, independent, identity, exchangeable, or the name of a kernel.
    cov
        Covariance matrix of the effects of one level, on the scale of the response.
    parameters
        The structure's own parameters by name, such as a kernel's length: ``estimate``, ``std_error``,
        ``conf_low``, ``conf_high`` (95%, symmetric on the log or atanh scale). Without rows where the matrix
        says all; NaN where the variance is zero.
    """

    group: str
    names: tuple[str, ...]
    structure: str
    cov: pd.DataFrame
    parameters: pd.DataFrame

    @property
    def sd(self) -> pd.Series:
        """Standard deviations of the effects."""
        return pd.Series(np.sqrt(np.diagonal(self.cov)), index=self.cov.index, name="sd")

    @property
    def corr(self) -> pd.DataFrame:
        """Correlation matrix; NaN for an effect of variance zero."""
        sd = self.sd.to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            corr = np.clip(self.cov.to_numpy() / np.outer(sd, sd), -1.0, 1.0)
        np.fill_diagonal(corr, np.where(sd > 0, 1.0, np.nan))
        return pd.DataFrame(corr, index=self.cov.index, columns=self.cov.columns)


def random_terms(estimates: Estimates) -> tuple[RandomTerm, ...]:
    """Estimated covariances of the random effects, one per term."""
    found = []
    natural = natural_parameters(VarianceParameters.of(estimates))
    for term, own in zip(estimates.terms, natural, strict=True):
        names = pd.Index(term.names)
        cov = pd.DataFrame(np.array(term.cov, dtype=np.float64), index=names, columns=names)
        parameters = pd.DataFrame(_natural_columns(own), index=pd.Index(own.names, name="parameter"))
        found.append(RandomTerm(term.group, term.names, term.structure, cov, parameters))
    return tuple(found)


def _natural_columns(own: NaturalParameters) -> dict[str, np.ndarray]:
    """Columns of a structure's own parameters, of one model."""
    columns = ("estimate", "std_error", "conf_low", "conf_high")
    values = (own.estimate, own.std_error, own.conf_low, own.conf_high)
    return {name: column[0] for name, column in zip(columns, values, strict=True)}


def coefficient_table(fixed: FixedInference, level: float) -> pd.DataFrame:
    """Table of the fixed effects; NaN in the rows of dropped (aliased) coefficients."""
    return linear_table(fixed.of_kept, np.eye(len(fixed.names)), level=level, index=fixed.names)


def tidy_table(
    frame: ModelFrame, estimates: Estimates, inference: VarianceInference, fixed: FixedInference, level: float
) -> pd.DataFrame:
    """Coefficients, then variances and covariances, then residual parameters, one to a row."""
    coefficients = coefficient_table(fixed, level)
    random = variance_table(inference, estimates, level)
    residual = parameter_table(residual_inference(estimates), level)
    num_fixed, num_random = len(frame.x_names), len(random["group"])
    terms = [
        f"var({group})" if first is None else f"var({first})" if second is None else f"cov({first}, {second})"
        for group, first, second in zip(random["group"], random["effect"], random["effect2"], strict=True)
    ]
    natural = natural_parameters(VarianceParameters.of(estimates), level)
    known = [
        (term.group, name) for term, own in zip(estimates.terms, natural, strict=True) for name in own.names
    ]
    columns: dict[str, Any] = {
        "effect": ["fixed"] * num_fixed
        + ["random"] * (num_random + len(known))
        + ["residual"] * len(residual),
        "group": [None] * num_fixed
        + random["group"]
        + [group for group, _ in known]
        + ["Residual"] * len(residual),
        "term": [*frame.x_names, *terms, *(name for _, name in known), *residual.index],
    }
    shown = [_natural_columns(own) for own in natural if own.names]
    shown.append({str(name): column.to_numpy() for name, column in residual.items()})
    for name in map(str, coefficients.columns):
        values = coefficients[name].to_numpy()
        own = [table.get(name, np.full(len(table["estimate"]), np.nan)) for table in shown]
        columns[name] = np.concatenate([values, random.get(name, np.full(num_random, np.nan)), *own])
    return pd.DataFrame(columns)


def overall_test(frame: ModelFrame, fixed: FixedInference) -> JointTest | None:
    """Test of all coefficients but the intercept; None where there are none, or it has no value."""
    tested = np.flatnonzero((np.asarray(frame.x_assign) != 0) & fixed.kept)
    found = fixed.of_kept.joint_test(np.eye(len(fixed.names))[tested])
    return None if np.isnan(found.p_value) else found


def distinct_groups(frame: ModelFrame, estimates: Estimates) -> list[GroupDesign]:
    """One design per grouping, in the order of the estimated terms (most levels first)."""
    found: dict[str, GroupDesign] = {}
    for term in estimates.terms:
        found.setdefault(term.group, frame.groups[term.frame_index])
    return list(found.values())


def group_sizes(group: GroupDesign) -> tuple[int, int, float, int]:
    """Number of levels, and the smallest, mean and largest number of rows in a level."""
    return size_summary(np.bincount(group.codes, minlength=len(group.levels)))


def size_summary(sizes: np.ndarray) -> tuple[int, int, float, int]:
    """Number of groups, and the smallest, mean and largest of their sizes."""
    return len(sizes), int(sizes.min()), float(sizes.mean()), int(sizes.max())


def all_group_sizes(frame: ModelFrame, estimates: Estimates) -> dict[str, tuple[int, int, float, int]]:
    """`group_sizes` by label: groupings of random effects, then the groups of correlated residuals."""
    found = {group.label: group_sizes(group) for group in distinct_groups(frame, estimates)}
    correlated = residual_group(frame, estimates)
    if correlated is not None:
        found.setdefault(correlated[0], size_summary(correlated[1]))
    return found


@dataclass(frozen=True, slots=True)
class Summary:
    """The printed summary of a fit, as text (``print``, ``str``) and HTML (notebooks).

    Parameters
    ----------
    title
        What was fitted and how.
    warnings
        Bad verdicts in words; they come first.
    formula
        The model formula.
    facts
        Pairs of a label and a value, in two columns.
    tables
        Groups, fixed effects, random effects.
    footer
        Test against the linear model.
    notes
        What a reader should know about the numbers above.
    checks
        What was found about the optimum, in a line or two.
    residuals
        Structure of correlated residuals, in a line.
    """

    title: str
    warnings: tuple[str, ...]
    formula: str
    facts: tuple[tuple[tuple[str, str], ...], ...]
    tables: tuple[Table, ...]
    footer: tuple[str, ...]
    notes: tuple[str, ...]
    checks: str = ""
    residuals: str = ""

    def __str__(self) -> str:
        blocks = [self.title]
        blocks += ["\n".join(wrapped(text, first="WARNING: ", indent="         ") for text in self.warnings)]
        formula = [wrapped(self.formula, first="Formula: ", indent="         ")]
        if self.residuals:
            formula += [wrapped(self.residuals, first="Residuals: ", indent="           ")]
        blocks += ["\n".join(formula)]
        blocks += ["\n".join(self._fact_lines())]
        blocks += [wrapped(self.checks, first="Optimum: ", indent="         ") if self.checks else ""]
        blocks += [table.text() for table in self.tables]
        ending = [wrapped(text) for text in self.footer] + [
            wrapped(text, first="Note: ", indent="      ") for text in self.notes
        ]
        # The test belongs to the last table, as Stata prints it.
        return "\n\n".join(block for block in blocks if block) + ("\n" + "\n".join(ending) if ending else "")

    __repr__ = __str__

    def _fact_lines(self) -> list[str]:
        """Both columns of facts; the values of the right one end where the tables end."""
        left, right = self.facts
        widths = [[max(display_width(pair[k]) for pair in side) for k in (0, 1)] for side in self.facts]
        middle = max(4, WIDTH - sum(map(sum, widths)) - 4)
        lines = []
        for i in range(max(len(left), len(right))):
            cells = [
                (
                    f"{side[i][0].ljust(names)}  {side[i][1].rjust(values)}"
                    if i < len(side)
                    else " " * (names + values + 2)
                )
                for side, (names, values) in zip(self.facts, widths, strict=True)
            ]
            lines.append((" " * middle).join(cells).rstrip())
        return lines

    def _repr_html_(self) -> str:
        """Fragment for notebooks: every name is escaped."""
        warnings = "".join(
            f'<p style="color:#a40000;font-weight:bold">Warning: {html.escape(text)}</p>'
            for text in self.warnings
        )
        rows = "".join(
            "<tr>"
            + "".join(
                (
                    f'<th style="text-align:left;font-weight:normal">{html.escape(side[i][0])}</th>'
                    f'<td style="text-align:right">{html.escape(side[i][1])}</td>'
                    if i < len(side)
                    else "<th></th><td></td>"
                )
                for side in self.facts
            )
            + "</tr>"
            for i in range(max(len(side) for side in self.facts))
        )
        tables = "".join(table.html() for table in self.tables)
        checks = f"<p>Optimum: {html.escape(self.checks)}</p>" if self.checks else ""
        residuals = f"<p>Residuals: {html.escape(self.residuals)}</p>" if self.residuals else ""
        ending = "".join(f"<p>{html.escape(text)}</p>" for text in self.footer)
        ending += "".join(f"<p><em>Note:</em> {html.escape(text)}</p>" for text in self.notes)
        return (
            f'<div class="jaxmixed-summary"><h4>{html.escape(self.title)}</h4>{warnings}'
            f"<p><code>{html.escape(self.formula)}</code></p>{residuals}<table>{rows}</table>{checks}{tables}"
            f"{ending}</div>"
        )


def summarise(
    frame: ModelFrame,
    estimates: Estimates,
    inference: VarianceInference,
    fixed: FixedInference,
    scale: Scale,
    level: float,
) -> Summary:
    """Summary of a fit; ``scale`` chooses what the table of random effects puts first."""
    if scale not in ("variance", "sd"):
        raise DataError(
            f"scale is {scale!r}; summary() shows the random effects on the scale 'variance' or 'sd'"
        )
    random = variance_table(inference, estimates, level)
    grouped = all_group_sizes(frame, estimates)
    tables = [_group_table(grouped)] if grouped else []
    tables += [
        _fixed_table(frame, fixed, level),
        _random_table(frame, estimates, inference, random, scale, level),
        *summary_tables(estimates, level),
    ]
    test = linear_model_test(estimates)
    return Summary(
        title=f"{_kind(estimates)} fitted by {method_in_words(estimates)}",
        warnings=verdicts(frame, estimates),
        formula=printable(frame.formula.text),
        facts=(_data_facts(frame, estimates, fixed), _likelihood_facts(estimates)),
        tables=tuple(tables),
        footer=(
            ()
            if test is None
            else (
                (
                    f"LR test against the linear model: {test.distribution} = {test.statistic:.2f}, "
                    f"{p_phrase(test.p_value)}"
                ),
            )
        ),
        notes=_notes(frame, estimates, random, "" if test is None else test.note),
        checks=summary_line(estimates),
        residuals=structure_in_words(frame, estimates),
    )


def method_in_words(estimates: Estimates) -> str:
    """Criterion of estimation, for headings."""
    if is_pseudo_likelihood(estimates):
        return "maximum pseudo-likelihood (sampling weights)"
    return _METHODS[estimates.method]


def _kind(estimates: Estimates) -> str:
    if estimates.terms:
        return "Linear mixed model"
    if estimates.residual is None:
        return "Linear model"
    what = "correlated residuals" if estimates.residual.labels.group is not None else "unequal variances"
    return f"Linear model with {what}"


def verdicts(frame: ModelFrame, estimates: Estimates) -> tuple[str, ...]:
    """Every bad verdict on a fit, in words, with advice: convergence, dropped columns, singularity."""
    found = estimates.diagnostics
    messages = [
        f"{message}. {ADVICE[kind]}." for kind, message in zip(found.problems, found.messages, strict=True)
    ]
    if found.rank_deficient:
        names = ", ".join(found.rank_deficient)
        messages.append(f"fixed-effects columns that depend linearly on others were dropped: {names}")
    if found.singular:
        bounds = boundary_components(estimates)
        advice = dict.fromkeys(boundary_advice(own, frame, estimates) for own in bounds)
        messages.append(
            ". ".join(
                [f"the fit is singular: {'; '.join(found.singular_terms)}", *list(advice)[:_MOST_ADVICE]]
            )
            + ("." if advice else "")
        )
    return tuple(printable(text) for text in messages)


def _data_facts(
    frame: ModelFrame, estimates: Estimates, fixed: FixedInference
) -> tuple[tuple[str, str], ...]:
    found = estimates.diagnostics
    facts = [("Observations", count(estimates.nobs)), ("Rows dropped", count(frame.n_dropped))]
    facts.append(("Parameters", str(estimates.num_params)))
    facts += _test_facts(overall_test(frame, fixed), fixed)
    steps = f"yes, {counted(found.iterations, 'iteration')}" if found.iterations else "yes"
    facts.append(("Converged", steps if found.converged else "NO"))
    return tuple(facts)


def _test_facts(test: JointTest | None, fixed: FixedInference) -> list[tuple[str, str]]:
    """The test of all coefficients, and the degrees of freedom of each as Stata heads its tables."""
    if test is None:
        return []
    if np.isinf(test.den_df):
        statistic = f"{test.num_df * test.statistic:.2f}"
        return [(f"Wald chi2({test.num_df})", statistic), ("Prob > chi2", p_number(test.p_value))]
    df = fixed.of_kept.df(np.eye(len(fixed.names))[fixed.kept])
    return [
        (f"F({test.num_df}, {test.den_df:.2f})", f"{test.statistic:.2f}"),
        ("Prob > F", p_number(test.p_value)),
        ("DF: min, avg, max", ", ".join(f"{value:.2f}" for value in (df.min(), df.mean(), df.max()))),
    ]


def _likelihood_facts(estimates: Estimates) -> tuple[tuple[str, str], ...]:
    reml = estimates.method == "reml"
    aic, bic = information_criteria(estimates)
    names = (
        ("Log restricted-likelihood", "REML criterion")
        if reml
        else ("Log likelihood", "Deviance (-2 log lik.)")
    )
    if np.isnan(aic):
        sums = ("Sum of weights", number(estimates.df, 8, 12))
        return ("Log pseudolikelihood", number(estimates.llf, 8, 12)), sums
    values = (estimates.llf, estimates.deviance, aic, bic)
    return tuple(
        (name, number(value, 8, 12)) for name, value in zip((*names, "AIC", "BIC"), values, strict=True)
    )


def information_criteria(estimates: Estimates) -> tuple[np.float64, np.float64]:
    """AIC = deviance + 2 k and BIC = deviance + k log n, k counting fixed effects and variance parameters.

    NaN for a pseudo-likelihood.
    """
    k = estimates.num_params
    if is_pseudo_likelihood(estimates):
        return np.float64(np.nan), np.float64(np.nan)
    return np.float64(estimates.deviance + 2 * k), np.float64(estimates.deviance + k * np.log(estimates.nobs))


def _group_table(grouped: dict[str, tuple[int, int, float, int]]) -> Table:
    rows = tuple(
        (printable(label), count(levels), count(low), f"{mean:,.1f}", count(high))
        for label, (levels, low, mean, high) in grouped.items()
    )
    return Table("", ("Group", "Levels", "Rows per level: min", "average", "max"), rows, ruled=False)


def _interval_header(level: float) -> tuple[str, str]:
    return f"[{100 * level:.12g}% conf.", "interval]"


def _fixed_table(frame: ModelFrame, fixed: FixedInference, level: float) -> Table:
    columns = coefficient_table(fixed, level)
    with_df = not np.isinf(columns["df"]).any()
    rows = []
    for name, value in zip(frame.x_names, columns.to_dict("records"), strict=True):
        if np.isnan(value["estimate"]):
            rows.append((printable(name), "dropped", *[""] * (6 if with_df else 5)))
            continue
        cells = [printable(name), number(value["estimate"]), number(value["std_error"])]
        if with_df:
            cells.append(f"{value['df']:.2f}")
        cells.append("." if np.isnan(value["statistic"]) else f"{value['statistic']:.2f}")
        cells += [p_number(value["p_value"]), number(value["conf_low"]), number(value["conf_high"])]
        rows.append(tuple(cells))
    tests = ("df", "t", "P>|t|") if with_df else ("z", "P>|z|")
    header = (printable(frame.response_name), "Estimate", "Std. error", *tests, *_interval_header(level))
    title = "Fixed effects" if fixed.title == "" else f"Fixed effects ({fixed.title})"
    return Table(title, header, tuple(rows))


def _random_table(
    frame: ModelFrame,
    estimates: Estimates,
    inference: VarianceInference,
    values: dict[str, Any],
    scale: Scale,
    level: float,
) -> Table:
    on_sd = scale == "sd"
    main = "sd_or_corr" if on_sd else "estimate"
    errors = "sd_or_corr_std_error" if on_sd else "std_error"
    low, high = ("sd_or_corr_conf_low", "sd_or_corr_conf_high") if on_sd else ("conf_low", "conf_high")
    other = "estimate" if on_sd else "sd_or_corr"
    rows: list[tuple[str, ...]] = []
    heading = ""
    natural = [_natural_columns(own) for own in natural_parameters(VarianceParameters.of(estimates), level)]
    for position, (number_of_term, i, j) in enumerate(inference.index):
        name = sigma_label(estimates.residual)
        if number_of_term >= 0:
            term = estimates.terms[number_of_term]
            if _heading(frame, term) != heading:
                heading = _heading(frame, term)
                rows.append((heading,))
            name = f"  {_parameter_name(term, i, j)}"
        cells = tuple(number(values[key][position]) for key in (main, errors, low, high, other))
        rows.append((name, *cells))
        if number_of_term >= 0 and inference.index[position + 1][0] != number_of_term:
            rows += _natural_rows(
                estimates.terms[number_of_term].covariance.natural_names, natural[number_of_term]
            )
    first, second = ("SD / corr.", "(Co)var.") if on_sd else ("(Co)var.", "SD / corr.")
    title = "Random effects" if estimates.terms else "Residual variance"
    return Table(title, ("", first, "Std. error", *_interval_header(level), second), tuple(rows))


def _natural_rows(names: tuple[str, ...], columns: dict[str, np.ndarray]) -> list[tuple[str, ...]]:
    """A structure's own parameters below its variances."""
    return [
        (f"  {printable(name)}", *(number(column[row]) for column in columns.values()), "")
        for row, name in enumerate(names)
    ]


def _heading(frame: ModelFrame, term: TermEstimate) -> str:
    """Grouping, a structure that restricts the covariances, and whether its levels are related."""
    about = []
    if len(term.names) > 1 and term.structure != "unstructured":
        effects = f": {joined(term.names, ', ')}" if term.covariance.homogeneous else ""
        about.append(f"{term.structure}{effects}")
    if frame.groups[term.frame_index].relationship is not None:
        about.append("known relationship")
    return printable(f"{term.group} ({'; '.join(about)})" if about else term.group)


def _parameter_name(term: TermEstimate, i: int, j: int) -> str:
    if term.covariance.homogeneous and len(term.names) > 1:
        return "Common variance" if i == j else "Common covariance"
    return printable(term.names[i] if i == j else f"{term.names[j]}, {term.names[i]}")


def _notes(frame: ModelFrame, estimates: Estimates, values: dict[str, Any], lr_note: str) -> tuple[str, ...]:
    notes = [lr_note] if lr_note else []
    if any(np.isnan(values["std_error"])):
        notes.append("a parameter on the boundary of its range has no standard error and no limits (.).")
    if np.isnan(estimates.beta).any():
        notes.append("a dropped coefficient belongs to a column that the columns before it determine.")
    for group in distinct_groups(frame, estimates):
        if group.num_recorded < _FEW_LEVELS:
            notes.append(
                f"{printable(group.label)} has only {group.num_recorded} levels, which say little about a"
                " variance: consider it as a fixed effect."
            )
    if any(group.relationship is not None for group in frame.groups):
        notes.append(
            "known relationship: variances are those of a level whose diagonal element in the matrix is one."
        )
    if frame.n_dropped:
        by = ", ".join(f"{printable(name)} {count(n)}" for name, n in frame.dropped_by.items() if n)
        notes.append(f"{counted(frame.n_dropped, 'row')} dropped for missing values ({by}).")
    if frame.weights is not None:
        notes.append("weighted: the residual variance of a row is the one shown divided by its weight.")
    notes += weights_notes(estimates, len(frame.y))
    if frame.offset is not None:
        notes.append("an offset is part of the linear predictor.")
    notes += residual_notes(estimates)
    return tuple(notes)
