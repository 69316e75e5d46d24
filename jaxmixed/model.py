"""`mixed`: from a formula and a data frame to a fitted model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from jaxmixed import optim
from jaxmixed.announcements import announce_verdicts
from jaxmixed.covariance import STRUCTURES, Covariance, covariance_structure
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.diagnosis import TermLabel
from jaxmixed.errors import (
    DataError,
    DesignError,
    FormulaError,
)
from jaxmixed.estimates import Estimates, SampleWeights
from jaxmixed.fitting import fit
from jaxmixed.formula import parse
from jaxmixed.frame import GroupDesign, ModelFrame, build_frame
from jaxmixed.frequencies import Frequencies
from jaxmixed.kernels import ORDERED, Kernel
from jaxmixed.layout import Grouping, arrange
from jaxmixed.relationship import separate
from jaxmixed.residual_columns import residual_columns
from jaxmixed.residual_frame import residual_frame
from jaxmixed.residual_identifiability import RandomTerm, check_told_apart
from jaxmixed.residual_text import as_structure
from jaxmixed.residuals import ResidualStructure
from jaxmixed.responses import LARGEST_MAGNITUDE
from jaxmixed.results import MixedResults
from jaxmixed.sampling import sampling_frame, weights_request
from jaxmixed.statistics import Term
from jaxmixed.weighted_samples import with_robust_covariances

Structure: TypeAlias = str | Kernel | Covariance
"""Covariance structure of a term as it is asked for."""


def mixed(
    formula: str,
    data: Any,
    *,
    method: str = "reml",
    covariance: Any = None,
    residuals: ResidualStructure | str | None = None,
    weights: Any = None,
    sampling_weights: str | Mapping[str, str] | None = None,
    weight_scaling: str | None = None,
    frequency_weights: str | Mapping[str, str] | None = None,
    offset: Any = None,
    missing: str = "drop",
    contrasts: Mapping[str, str] | None = None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
    max_iterations: int = optim.MAX_ITERATIONS,
) -> MixedResults:
    """Fit a Gaussian mixed model (multilevel, hierarchical linear model).

    Parameters
    ----------
    formula : str
        lme4's notation, ``"y ~ x + (1 + x | school)"``; without a bar term, a linear model.
    data : DataFrame or mapping
        pandas, polars or pyarrow table, or a dict of arrays. Never modified.
    method : {"reml", "ml"}
        Restricted or full maximum likelihood.
    covariance : str, Kernel, Covariance or mapping, optional
        Structure of the random effects, for all terms or by group label (a list where a group has several
        terms): "unstructured" (default), "independent", "identity", "exchangeable", over the levels of an
        ordered factor "ar1" and "toeplitz", or a covariance function of :mod:`jaxmixed.kernels`. Takes the
        place of what the formula says. By group label also a known relationship between the levels, such as
        a pedigree's: ``{"animal": jm.known(A, ids)}``.
    residuals : ResidualStructure or str, optional
        Correlations and variances of the residuals within groups: a structure of :mod:`jaxmixed.residuals`,
        or its text such as ``"us(visit | id)"``, ``"ar1(week | id)"``. By default they are independent.
    weights : str or array, optional
        Precision weights: ``Var(e_i) = sigma**2 / w_i``.
    sampling_weights : str or mapping, optional
        Columns of inverse probabilities of selection: of the rows within their group under ``"obs"``, of each
        grouping's levels within the next coarser one under its label, ``{"obs": "w1", "school": "w2"}``. The
        pseudo-likelihood is maximised (``method="ml"``), and standard errors are robust to clusters of the
        coarsest grouping, as Stata's ``mixed`` has them. Nested groupings only.
    weight_scaling : {"size", "effective", "gk"}, optional
        Scaling of sampling weights below the coarsest grouping: to add up to the number of units in each
        group, to their effective number ``(sum w)**2 / sum w**2``, or Graubard and Korn's. By default none.
    frequency_weights : str or mapping, optional
        Columns of whole numbers: how often each row, and each level of a grouping, stands in the data. As
        `sampling_weights`, but the likelihood and the standard errors are those of the copied data.
    offset : str or array, optional
        Known part of the mean.
    missing : {"drop", "raise"}
        What to do with rows in which a used column is missing.
    contrasts : mapping, optional
        Contrast ("treatment", "sum", "helmert", "poly") by categorical column.
    functions : mapping, optional
        Your own functions of one column, by the name that the formula uses.
    max_iterations : int
        Limit on the optimiser's iterations.

    Returns
    -------
    MixedResults

    Raises
    ------
    FormulaError
        The formula cannot be read.
    DataError
        A column cannot be used as the formula asks.
    DesignError
        The model is not identifiable from these data.

    Warns
    -----
    ConvergenceWarning
        A check of the optimum failed.
    SingularFitWarning
        An estimated covariance matrix is singular.
    RankDeficientWarning
        Fixed-effect columns were dropped, or are nearly collinear.

    References ---------- Bates, Maechler, Bolker & Walker (2015), Fitting linear mixed-effects models using
    lme4, Journal of Statistical Software 67(1).

    Examples
    --------
    >>> import jaxmixed as jm
    >>> fit = jm.mixed("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> round(float(fit.deviance), 4)
    1743.6283
    """
    if method not in ("reml", "ml"):
        raise DesignError(f"method={method!r} is not known; choose 'reml' or 'ml'.")
    check_iterations(max_iterations)
    unlike = {"weights": weights, "residuals": residuals}
    request = weights_request(sampling_weights, frequency_weights, weight_scaling, method, unlike)
    frame, covariance = frame_of(
        formula,
        data,
        covariance,
        contrasts,
        functions,
        weights=weights,
        offset=offset,
        missing=missing,
        residuals=residuals,
        also=() if request is None else tuple(request.columns.values()),
    )
    frame = replace(frame, sampling=sampling_frame(request, frame))
    state, estimates = fit_frame(frame, method, covariance, max_iterations)
    announce_verdicts(estimates, frame.formula.text)
    return MixedResults(frame=frame, estimates=estimates, state=state)


def frame_of(
    formula: str,
    data: Any,
    covariance: Any,
    contrasts: Mapping[str, str] | None,
    functions: Mapping[str, Callable[..., Any]] | None,
    *,
    weights: Any,
    offset: Any,
    missing: str,
    residuals: Any = None,
    also: tuple[str, ...] = (),
) -> tuple[ModelFrame, Any]:
    """Model frame of the arguments of :func:`mixed`, and the covariance structures without relationships.

    Returns
    -------
    ModelFrame
    covariance : str, Kernel, Covariance, mapping or None
    """
    covariance, relationships = separate(covariance)
    check_arguments(covariance, contrasts, functions)
    structure = as_structure(residuals)
    parsed = parse(formula, frozenset(functions or ()))
    frame = build_frame(
        parsed,
        data,
        weights=weights,
        offset=offset,
        missing=missing,
        contrasts=contrasts,
        functions=functions,
        relationships=relationships,
        covariance=covariance,
        also=(*residual_columns(structure, parsed), *also),
    )
    return replace(frame, residual=residual_frame(structure, frame)), covariance


def check_iterations(max_iterations: Any) -> None:
    """Refuse a limit on iterations that is none."""
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 1:
        raise DesignError(f"max_iterations={max_iterations!r} must be a positive integer.")


def check_arguments(covariance: Any, contrasts: Any, functions: Any) -> None:
    """Refuse arguments of the wrong kind before any work is done; they are those of :func:`mixed`."""
    if not (covariance is None or isinstance(covariance, str | Mapping | Kernel | Covariance)):
        raise FormulaError(
            f"covariance={covariance!r} must be the name of a structure ({_known_names()})"
            ", a kernel (jm.kernels), or a mapping from group labels to these."
        )
    if not (contrasts is None or isinstance(contrasts, Mapping)):
        raise DataError(
            f"contrasts={contrasts!r} must map columns to 'treatment', 'sum', 'helmert' or 'poly'."
        )
    if not (functions is None or isinstance(functions, Mapping)):
        raise FormulaError(f"functions={functions!r} must map names to functions.")
    for name, function in (functions or {}).items():
        if not callable(function):
            raise FormulaError(f"functions[{name!r}] is {function!r}, which cannot be called.")


def fit_frame(
    frame: ModelFrame,
    method: str,
    covariance: Any = None,
    max_iterations: int = optim.MAX_ITERATIONS,
) -> tuple[Reduction, Estimates]:
    """Fit a model frame: find how its grouping factors are nested or crossed, reduce the rows, optimise.

    Parameters
    ----------
    frame : ModelFrame
    method : {"reml", "ml"}
    covariance : str or mapping, optional
        As for :func:`mixed`.
    max_iterations : int

    Returns
    -------
    Reduction, Estimates
    """
    check_magnitudes(frame)
    structures = structures_of(frame.groups, covariance)
    groupings, terms, labels = terms_of(frame.groups, structures)
    residual = frame.residual
    correlated = None if residual is None else residual.design
    if residual is not None:
        _check_told_apart(frame, terms, labels)
    layout = arrange(groupings, None if correlated is None else correlated.codes)
    levels = {factor: level for level, factor in enumerate(layout.order)}
    reduction = reduce_rows(
        frame.y_less_offset,
        frame.X,
        [groupings[factor] for factor in layout.chain],
        tuple(replace(term, level=levels[term.level]) for term in terms),
        frame.weights,
        [groupings[factor] for factor in layout.root],
        correlated,
        None if frame.sampling is None else _frequencies(frame, [groupings[i].label for i in layout.order]),
    )
    estimates = fit(
        reduction,
        labels,
        frame.x_names,
        method=method,  # type: ignore[arg-type]
        weighted=frame.weights is not None,
        max_evaluations=max_iterations,
        residual_labels=None if residual is None else residual.labels,
        sampling=_sample_weights(frame, reduction),
    )
    return reduction, with_robust_covariances(frame, reduction, estimates)


def _frequencies(frame: ModelFrame, labels: Sequence[str]) -> Frequencies:
    """How often rows and groups count, level by level of the chain."""
    return Frequencies(frame.sampling.rows, tuple(frame.sampling.groups.get(label) for label in labels))


def _sample_weights(frame: ModelFrame, reduction: Reduction) -> SampleWeights | None:
    own = frame.sampling
    if own is None:
        return None
    return SampleWeights(own.request.kind, own.text, own.request.scaling, float(reduction.stats.nobs))


def _check_told_apart(frame: ModelFrame, terms: list[Term], labels: tuple[TermLabel, ...]) -> None:
    """Refuse random effects that the residual structure makes undetermined."""
    found, texts = [], []
    for term, label in zip(terms, labels, strict=True):
        group = frame.groups[label.frame_index]
        if group.relationship is None:
            found.append(RandomTerm(group.codes, group.Z, term.covariance))
            texts.append(group.term.text)
    check_told_apart(frame, found, texts)


def check_magnitudes(frame: ModelFrame) -> None:
    """Refuse columns whose variances, or the variances of those, a float64 could not hold.

    Raises
    ------
    DataError
        Naming the column.
    """
    columns = [(f"the response {frame.response_name!r}", frame.y)]
    columns += [(f"the column {name!r}", frame.X[:, j]) for j, name in enumerate(frame.x_names)]
    columns += [
        (f"the column {name!r} of the random effects of {group.label!r}", group.Z[:, j])
        for group in frame.groups
        for j, name in enumerate(group.names)
    ]
    if frame.weights is not None:
        columns.append(("weights", frame.weights))
    for what, values in columns:
        largest = max(float(values.max()), -float(values.min()))
        if largest > LARGEST_MAGNITUDE or 0 < largest < 1 / LARGEST_MAGNITUDE:
            raise DataError(
                f"The largest absolute value of {what} is {largest:.3g}; magnitudes must lie between "
                f"{1 / LARGEST_MAGNITUDE:g} and {LARGEST_MAGNITUDE:g} for their variances to be "
                "representable. Change its unit."
            )


def structures_of(groups: tuple[GroupDesign, ...], covariance: Any) -> list[Structure]:
    """Structure of each term: the formula's, unless `covariance` gives another.

    Parameters
    ----------
    groups : tuple of GroupDesign
    covariance
        As for :func:`mixed`.

    Returns
    -------
    list of str, Kernel or Covariance

    Raises
    ------
    FormulaError
        For a group or a structure that does not exist.
    """
    structures: list[Structure] = [group.structure for group in groups]
    if covariance is None:
        return structures
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group.label, []).append(number)
    wanted = dict(covariance) if isinstance(covariance, Mapping) else dict.fromkeys(members, covariance)
    for label, given in wanted.items():
        if label not in members:
            raise FormulaError(
                f"covariance= names the group {label!r}, which the formula does not have; its groups are "
                f"{', '.join(map(repr, sorted(members)))}."
            )
        numbers = members[label]
        several = given if isinstance(given, list | tuple) else [given] * len(numbers)
        if len(several) != len(numbers):
            raise FormulaError(
                f"covariance= has {len(several)} structures for the {len(numbers)} terms of {label!r}: "
                f"{', '.join(groups[number].term.text for number in numbers)}; give one for each."
            )
        for number, structure in zip(numbers, several, strict=True):
            _check_structure(structure)
            structures[number] = structure
    return structures


def _check_structure(structure: Any) -> None:
    known = isinstance(structure, str) and structure in {*STRUCTURES, *ORDERED}
    if known or isinstance(structure, Kernel | Covariance):
        return
    raise FormulaError(
        f"covariance structure {structure!r} is not known; choose one of {_known_names()}, or a kernel such "
        "as jm.kernels.squared_exponential()."
    )


def _known_names() -> str:
    return ", ".join(map(repr, (*STRUCTURES, *ORDERED)))


def covariance_of(structure: Structure, group: GroupDesign) -> Covariance:
    """Covariance of the effects of a term.

    Parameters
    ----------
    structure : str, Kernel or Covariance
        A kernel without positions, or the name of one, gets those that the levels of the term's factor are.
    group : GroupDesign

    Returns
    -------
    Covariance

    Raises
    ------
    FormulaError
        If a kernel finds no positions, or a structure is of another number of effects.
    """
    q = len(group.names)
    if isinstance(structure, str) and structure in ORDERED:
        structure = ORDERED[structure]()
    if isinstance(structure, str):
        return covariance_structure(structure, q)
    bound = structure.at(_positions(structure, group)) if isinstance(structure, Kernel) else structure
    if bound.q != q:
        raise FormulaError(
            f"the structure {bound.name!r} is of {bound.q} effects, and the term {group.term.text} has {q}: "
            f"{', '.join(map(repr, group.names[:10]))}{', ...' if q > 10 else ''}."
        )
    return bound


def _positions(kernel: Kernel, group: GroupDesign) -> np.ndarray:
    """Levels of the one factor of a term as numbers; of an ordered factor of texts, their places."""
    advice = (
        f"the kernel {kernel.name!r} needs a position for each effect of {group.term.text}: write the term "
        f"as (0 + C(time) | {group.label}) with a column of numbers, or give positions with .at([...])"
    )
    if group.factor_levels is None:
        raise FormulaError(f"{advice}; its effects are {', '.join(map(repr, group.names[:10]))}.")
    try:
        return np.asarray(group.factor_levels, dtype=np.float64)
    except (TypeError, ValueError):
        if group.factor_places is not None:
            return group.factor_places.astype(np.float64)
        shown = ", ".join(map(repr, group.factor_levels[:5].tolist()))
        raise FormulaError(
            f"{advice}; the levels of its factor are no numbers: {shown}. Where they have an order and are "
            "equally spaced, make the column an ordered category: pd.Categorical(..., ordered=True)."
        ) from None


def terms_of(
    groups: tuple[GroupDesign, ...], structures: Sequence[Structure]
) -> tuple[list[Grouping], list[Term], tuple[TermLabel, ...]]:
    """Distinct grouping factors by falling number of levels, and where each term's columns stand in them.

    Parameters
    ----------
    groups : tuple of GroupDesign
    structures : sequence of str, Kernel or Covariance
        Of each term.

    Returns
    -------
    groupings : list of Grouping
    terms : list of Term
        Their `level` is a position among `groupings`.
    labels : tuple of TermLabel
        In the order of `terms`.
    """
    partitions: dict[int, list[int]] = {}
    for number, group in enumerate(groups):
        partitions.setdefault(id(group.codes), []).append(number)
    groupings: list[Grouping] = []
    terms: list[Term] = []
    labels: list[TermLabel] = []
    for factor, members in enumerate(
        sorted(partitions.values(), key=lambda own: -groups[own[0]].num_recorded)
    ):
        first = groups[members[0]]
        size, relationship = first.num_recorded, first.relationship
        blocks = [groups[number].Z for number in members]
        Z = blocks[0] if len(blocks) == 1 else np.column_stack(blocks)
        known = None if relationship is None else relationship.matrix
        groupings.append(Grouping(Z, first.codes, size, first.label, known))
        start = 0
        for number in members:
            q = groups[number].Z.shape[1]
            terms.append(Term(factor, start, covariance_of(structures[number], groups[number])))
            labels.append(TermLabel(groups[number].label, groups[number].names, number, len(first.levels)))
            start += q
    return groupings, terms, tuple(labels)
