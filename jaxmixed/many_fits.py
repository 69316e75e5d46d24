"""Blocks of models handed to workers, and their outcomes put together; the further fits of one fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxmixed import fitting, schedule
from jaxmixed.correlated_refits import CorrelatedRefits
from jaxmixed.crossproducts import Reduction, reduce_rows
from jaxmixed.diagnosis import TermLabel
from jaxmixed.encoding import EffectsCoding
from jaxmixed.errors import DataError, DesignError, JaxMixedError
from jaxmixed.many_denominators import Designs
from jaxmixed.many_estimates import (
    INTERRUPTED,
    MISSING,
    REFUSED,
    ManyEstimates,
    arrays_of,
    concatenate,
    place,
)
from jaxmixed.many_results import ManyResults
from jaxmixed.missingness import Outcome, ResponseFits, signature, unusable
from jaxmixed.response_columns import ResponseColumns, response_columns
from jaxmixed.statistics import Term
from jaxmixed.streaming import ManyFile, stream_models
from jaxmixed.subdesigns import WholeDesign
from jaxmixed.weighted_samples import refuse_weighted_sample, with_robust_covariances

if TYPE_CHECKING:
    from jaxmixed.covariance import Covariance
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame

COPIES = 4
"""Arrays of the size of its responses that a block holds while it is reduced."""


DETAIL_BYTES = 400
"""Longest text about one model that processes tell each other."""


def blocks_of(
    models: int, bytes_each: float, block: int | None, crew: schedule.Crew
) -> list[tuple[int, int]]:
    """First and last model of every block: of the size asked for, or of one that memory allows."""
    if block is None:
        return schedule.bounds(models, bytes_each, crew)
    if isinstance(block, bool) or not isinstance(block, int | np.integer) or block < 1:
        raise DataError(f"block={block!r} must be a positive integer: models fitted at a time")
    return [(first, min(first + int(block), models)) for first in range(0, models, int(block))]


def run_models(
    work: Callable[[int, int], Outcome],
    blocks: Sequence[tuple[int, int]],
    crew: schedule.Crew,
    blank: Callable[[int, int], ManyEstimates],
    progress: bool | None = None,
) -> Outcome:
    """Fit all models, block by block, and join what is found.

    Parameters
    ----------
    work : callable
        ``work(first, last)``, called in threads.
    blocks : sequence of (first, last)
    crew : Crew
    blank : callable
        ``blank(models, reason)``: estimates of models that were not fitted.
    progress : bool, optional

    Returns
    -------
    Outcome
        Of all models; those that an interrupt left out have that as their reason.
    """
    models = blocks[-1][1] if blocks else 0
    parts: list[ManyEstimates] = [blank(0, INTERRUPTED)]
    rows, sums = [np.zeros(0, dtype=np.int64)], [np.zeros((0, 3))]
    details: dict[int, str] = {}
    for number, outcome in schedule.run(work, blocks, crew, progress=progress):
        first, last = blocks[number]
        parts.append(outcome.estimates)
        sums.append(outcome.signature)
        rows.append(np.arange(first, last))
        details.update((first + model, text) for model, text in outcome.details.items())
    estimates = concatenate(parts[1:] or parts)
    places, signature = np.concatenate(rows), np.concatenate(sums)
    if crew.is_shared:
        estimates, details, signature, places = _of_all_processes(
            crew, Outcome(estimates, details, signature), places
        )
    if len(places) == models:
        return Outcome(estimates, details, signature)
    whole = np.full((models, 3), np.nan)
    whole[places] = signature
    return Outcome(place(blank(models, INTERRUPTED), places, estimates), details, whole)


def _of_all_processes(
    crew: schedule.Crew, own: Outcome, places: np.ndarray
) -> tuple[ManyEstimates, dict[int, str], np.ndarray, np.ndarray]:
    """Every process's estimates, details, signatures and their places, given to all."""
    found = own.estimates
    arrays = arrays_of(found) | {"nobs": found.nobs.astype(np.float64), "signature": own.signature}
    frames = {
        f"frame {t}": np.broadcast_to(values, (len(found), *values.shape[-2:]))
        for t, values in enumerate(found.frames)
    }
    everything, places = schedule.gather(crew, arrays | frames, places)
    signature = everything.pop("signature")
    if (everything["nobs"] == np.rint(everything["nobs"])).all():
        everything["nobs"] = everything["nobs"].astype(np.int64)
    together = tuple(everything.pop(name) for name in frames)
    texts = np.zeros((len(own.details), DETAIL_BYTES), dtype=np.uint8)
    for line, text in zip(texts, own.details.values(), strict=True):
        encoded = np.frombuffer(text.encode(), dtype=np.uint8)[:DETAIL_BYTES]
        line[: len(encoded)] = encoded
    sent, models = schedule.gather(crew, {"text": texts}, np.array(list(own.details), dtype=np.int64))
    details = {
        model: line.tobytes().rstrip(b"\0").decode(errors="ignore")
        for model, line in zip(models.tolist(), sent["text"], strict=True)
    }
    changed: dict[str, Any] = {"frames": together, **everything}
    return replace(found, **changed), details, signature, places


def _width(structure: str | Covariance, effects: EffectsCoding) -> int:
    """Effects per level in one covariance block: all, or those of one variable when independent."""
    if structure != "independent":
        return len(effects.names)
    return max(effects.assign.count(number) for number in set(effects.assign))


def widths_of(frame: ModelFrame, labels: Sequence[TermLabel]) -> tuple[int, ...]:
    """For each term, how many effects of a group are estimated together."""
    return tuple(
        _width(frame.groups[label.frame_index].structure, frame.encoding.random[label.frame_index])
        for label in labels
    )


def design_of_fit(frame: ModelFrame, estimates: Estimates, state: Reduction) -> WholeDesign:
    """The design of a fit, of which further models may use some rows."""
    labels = tuple(
        TermLabel(term.group, term.names, term.frame_index, term.num_levels) for term in estimates.terms
    )
    design = state.design
    return WholeDesign(
        X=design.X,
        x_names=frame.x_names,
        groupings=(*design.groupings, *design.root),
        terms=state.stats.terms,
        labels=labels,
        widths=widths_of(frame, labels),
        weights=design.weights,
        residual=design.residual,
    )


def whole_design(
    frame: ModelFrame, groupings: Sequence[Any], terms: Sequence[Term], labels: tuple[TermLabel, ...]
) -> WholeDesign:
    """The design of a model frame that has not been fitted."""
    return WholeDesign(
        X=frame.X,
        x_names=frame.x_names,
        groupings=tuple(groupings),
        terms=tuple(terms),
        labels=labels,
        widths=widths_of(frame, labels),
        weights=frame.weights,
    )


@dataclass(frozen=True, slots=True)
class ModelJob:
    """Many models of one formula, to be fitted.

    Attributes
    ----------
    frame : ModelFrame
        Of all rows.
    names : pandas.Index
        Of the models.
    work : callable
        ``work(first, last)`` fits some of them.
    blank : callable
        ``blank(models, reason)``: estimates of models that were not fitted.
    bytes_each : float
        Memory of one model while it is fitted.
    designs : callable
        ``designs(first, last)`` gives the designs of some of them again.
    """

    frame: ModelFrame
    names: pd.Index
    work: Callable[[int, int], Outcome]
    blank: Callable[[int, int], ManyEstimates]
    bytes_each: float
    designs: Designs

    def run(
        self,
        crew: schedule.Crew,
        progress: bool | None = None,
        block: int | None = None,
        out: str | Path | None = None,
        ddf: str = "none",
    ) -> ManyResults | ManyFile:
        """Fit all models, and hold the results or write them to a file.

        Parameters
        ----------
        crew : Crew
        progress : bool, optional
        block : int, optional
            Models fitted at a time.
        out : str or Path, optional
            Parquet file.
        ddf : str
            Degrees of freedom of the results' tests.

        Returns
        -------
        ManyResults or ManyFile
        """
        blocks = blocks_of(len(self.names), self.bytes_each, block, crew)
        if out is not None:
            empty = self.blank(0, INTERRUPTED)
            return stream_models(self.work, blocks, crew, self.names, empty, Path(out), progress)
        found = run_models(self.work, blocks, crew, self.blank, progress)
        results = ManyResults(
            frame=self.frame,
            estimates=found.estimates,
            names=self.names,
            details=found.details,
            signature=found.signature,
            designs=self.designs,
            ddf=ddf,
        )
        results.warn()
        return results


def response_job(
    frame: ModelFrame, columns: ResponseColumns, fits: ResponseFits, offset: np.ndarray | None
) -> ModelJob:
    """The fits of many responses to one design.

    Parameters
    ----------
    frame : ModelFrame
    columns : ResponseColumns
    fits : ResponseFits
    offset : (n,) array or None

    Returns
    -------
    ModelJob
    """

    def work(first: int, last: int) -> Outcome:
        Y = columns.read(first, last)
        return fits.fit(Y if offset is None else Y - offset[:, None])

    def designs(first: int, last: int) -> Iterable[tuple[np.ndarray, Reduction]]:
        return fits.designs(columns.read(first, last))

    bytes_each = 8.0 * COPIES * len(frame.X)
    return ModelJob(frame, columns.names, work, fits.separate.blank, bytes_each, designs)


def _correlated_job(
    frame: ModelFrame, columns: ResponseColumns, design: WholeDesign, refits: CorrelatedRefits
) -> ModelJob:
    """The fits of many responses to a design with correlated residuals, one after the other."""

    def reduced(y: np.ndarray) -> Reduction | int | str:
        rows = np.flatnonzero(~np.isnan(y))
        reason = unusable(y[rows]) if len(rows) else MISSING
        try:
            return reason or design.reduce(y[rows], rows)
        except JaxMixedError as problem:
            return str(problem)

    def work(first: int, last: int) -> Outcome:
        Y = columns.read(first, last)
        own = Y if frame.offset is None else Y - frame.offset[:, None]
        parts = [reduced(y) for y in np.ascontiguousarray(own.T)]
        details = {number: part for number, part in enumerate(parts) if isinstance(part, str)}
        found = refits.fit_reductions([REFUSED if isinstance(part, str) else part for part in parts])
        return Outcome(found, details, signature(own))

    def designs(first: int, last: int) -> Iterable[tuple[np.ndarray, Reduction]]:
        raise DesignError("degrees of freedom of many models are those of independent residuals")

    bytes_each = 8.0 * COPIES * len(frame.X)
    return ModelJob(frame, columns.names, work, refits.blank, bytes_each, designs)


def refit_many(
    frame: ModelFrame,
    estimates: Estimates,
    state: Reduction,
    Y: Any,
    *,
    devices: Any = None,
    mesh: Any = None,
    progress: bool | None = None,
) -> ManyResults:
    """Fit further responses; see `MixedResults.refit_many`."""
    refuse_weighted_sample(estimates, "refit_many()", "responses share sums in which every row counts once")
    crew = schedule.assemble(devices, mesh)
    columns = response_columns(Y, frame.index, frame.kept)
    design = design_of_fit(frame, estimates, state)
    if estimates.residual is not None:
        refits = CorrelatedRefits(
            state,
            design.labels,
            frame.x_names,
            estimates.residual,
            method=estimates.method,  # type: ignore[arg-type]
        )
        job = _correlated_job(frame, columns, design, refits)
    else:
        fits = ResponseFits(design, state, method=estimates.method)  # type: ignore[arg-type]
        job = response_job(frame, columns, fits, frame.offset)
    found = job.run(crew, progress)
    assert isinstance(found, ManyResults)
    return found


def further_frame(frame: ModelFrame, y: Any) -> ModelFrame:
    """The frame of a fit with another response.

    Parameters
    ----------
    frame : ModelFrame
    y : array or Series
        A number for each row used, or for each row of the data.

    Returns
    -------
    ModelFrame

    Raises
    ------
    DataError
        If a value is missing or infinite, or all are equal.
    """
    values = y.to_frame() if isinstance(y, pd.Series) else np.asarray(y)
    if not isinstance(values, pd.DataFrame) and values.ndim != 1:
        raise DataError(
            f"y has shape {values.shape}; refit() takes one response, and refit_many() one per column"
        )
    column = values if isinstance(values, pd.DataFrame) else values[:, None]
    response = response_columns(column, frame.index, frame.kept).read(0, 1)[:, 0]
    if not np.isfinite(response).all():
        raise DataError(
            f"y is missing or infinite in {np.count_nonzero(~np.isfinite(response)):,} of {len(response):,} "
            "rows; refit_many() fits such a response to the rows that it has"
        )
    if response.min() == response.max():
        raise DataError(f"y is constant: all values equal {response[0]:g}; there is nothing to model")
    if unusable(response):
        raise DataError("the magnitude of y leaves no room for its variance in float64; change its unit")
    response = np.array(response)
    response.flags.writeable = False
    name = str(y.name) if isinstance(y, pd.Series) and y.name is not None else frame.response_name
    return replace(frame, y=response, response_name=name)


def refit_one(
    frame: ModelFrame, estimates: Estimates, state: Reduction, y: Any
) -> tuple[ModelFrame, Estimates, Reduction]:
    """Fit another response; see `MixedResults.refit`."""
    own, design = further_frame(frame, y), state.design
    reduction = reduce_rows(
        own.y_less_offset,
        design.X,
        design.groupings,
        state.stats.terms,
        design.weights,
        design.root,
        design.residual,
        design.frequencies,
    )
    residual = estimates.residual
    found = fitting.fit(
        reduction,
        design_of_fit(frame, estimates, state).labels,
        frame.x_names,
        method=estimates.method,  # type: ignore[arg-type]
        weighted=estimates.weighted,
        residual_labels=None if residual is None else residual.labels,
        sampling=estimates.sampling,
    )
    return own, with_robust_covariances(own, reduction, found), reduction
