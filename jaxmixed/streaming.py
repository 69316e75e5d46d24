"""Estimates of many models written to a Parquet file as they are found, so that memory holds a few blocks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import schedule
from jaxmixed.errors import ConvergenceWarning, DataError, user_level
from jaxmixed.formatting import counted
from jaxmixed.many_estimates import ManyEstimates
from jaxmixed.many_tables import wide_columns
from jaxmixed.missingness import Outcome


@dataclass(frozen=True, slots=True)
class ManyFile:
    """A Parquet file of estimates, one row per model, with the columns of `ManyResults.to_frame`.

    Parameters
    ----------
    path
        Where it is.
    models
        Number of models written; after an interrupt, of those that were finished.
    converged
        How many of them passed the checks of the optimum.
    singular
        How many have a singular covariance matrix.
    failed
        How many have no estimates; the column ``reason`` says why.
    """

    path: Path
    models: int
    converged: int
    singular: int
    failed: int

    def __len__(self) -> int:
        return self.models

    def read(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """The file, or some of its columns, as a data frame with the models as its index."""
        from pyarrow import parquet

        wanted = None if columns is None else ["model", *columns]
        table: pd.DataFrame = parquet.read_table(self.path, columns=wanted).to_pandas()
        return table.set_index("model")


def stream_models(
    work: Callable[[int, int], Outcome],
    blocks: Sequence[tuple[int, int]],
    crew: schedule.Crew,
    names: pd.Index,
    empty: ManyEstimates,
    path: Path,
    progress: bool | None = None,
) -> ManyFile:
    """Fit all models and write each block's estimates when they are there.

    Parameters
    ----------
    work : callable
        ``work(first, last)``, called in threads.
    blocks : sequence of (first, last)
    crew : Crew
    names : pandas.Index
        Of all models.
    empty : ManyEstimates
        Of no model: what the columns are.
    path : Path
    progress : bool, optional

    Returns
    -------
    ManyFile

    Raises
    ------
    DataError
        If several processes share the work, or the folder does not exist.
    """
    from pyarrow import parquet

    if crew.is_shared:
        raise DataError("out= is for one process: give each process responses and a file of its own")
    if not path.parent.is_dir():
        raise DataError(f"out={str(path)!r}: there is no folder {str(path.parent)!r}")
    schema = _table(empty, {}, names[:0], None).schema

    def work_to_table(first: int, last: int) -> tuple[Any, np.ndarray]:
        found, details, _ = work(first, last)
        good, counts = found.fitted, [len(found), found.converged.sum(), found.singular.sum()]
        return _table(found, details, names[first:last], schema), np.array([*counts, (~good).sum()])

    total = np.zeros(4, dtype=np.int64)
    with parquet.ParquetWriter(path, schema) as writer:
        for _, (table, counts) in schedule.run(work_to_table, blocks, crew, progress=progress):
            writer.write_table(table)
            total += counts
    written = ManyFile(path, *total.tolist())
    bad = written.models - written.converged
    if bad:
        warnings.warn(
            f"{bad:,} of {counted(written.models, 'model')} failed; the column 'reason' of {path.name} says "
            "why.",
            ConvergenceWarning,
            stacklevel=user_level(),
        )
    return written


def _table(estimates: ManyEstimates, details: dict[int, str], names: pd.Index, schema: Any) -> Any:
    """One block as an Arrow table."""
    import pyarrow

    columns: dict[str, Any] = {"model": np.asarray(names)}
    columns.update(wide_columns(estimates, details))
    columns["nobs"] = np.asarray(columns["nobs"], dtype=np.float64)
    kinds: dict[str, Any] = {"reason": pyarrow.string()}
    if schema is not None:
        kinds = {field.name: field.type for field in schema}
    elif names.dtype.kind not in "iuf":
        kinds["model"] = pyarrow.string()
    if kinds.get("model") == pyarrow.string():
        columns["model"] = np.array([str(name) for name in names], dtype=object)
    return pyarrow.table({name: pyarrow.array(own, type=kinds.get(name)) for name, own in columns.items()})
