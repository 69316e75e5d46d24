"""Models that use some rows of a design, or count rows more than once.

Every model has a design of its own then: groups that keep no row disappear, a factor may become coarser than
another, columns may become zero. Each is reduced from its rows, and refused in words where these do not
identify it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from jaxmixed.covariance import STRUCTURES
from jaxmixed.crossproducts import Reduction, reduce_rows, same_memory
from jaxmixed.diagnosis import TermLabel
from jaxmixed.errors import DesignError
from jaxmixed.layout import Grouping, arrange, is_plain
from jaxmixed.residual_groups import ResidualDesign
from jaxmixed.statistics import Term


@dataclass(frozen=True, slots=True)
class WholeDesign:
    """All rows, of which models take some.

    Attributes
    ----------
    X : (n, p) array
        Fixed-effects columns.
    x_names : tuple of str
    groupings : tuple of Grouping
        Distinct factors, by falling number of groups.
    terms : tuple of Term
        Their `level` is the position of the factor among `groupings`.
    labels : tuple of TermLabel
        One per term.
    widths : tuple of int
        For each term, how many effects of a group it estimates covariances of at once.
    weights : (n,) array or None
        Precision weights.
    residual : ResidualDesign or None
        Structure of correlated residuals.
    """

    X: np.ndarray
    x_names: tuple[str, ...]
    groupings: tuple[Grouping, ...]
    terms: tuple[Term, ...]
    labels: tuple[TermLabel, ...]
    widths: tuple[int, ...]
    weights: np.ndarray | None
    residual: ResidualDesign | None = None

    def reduce(
        self, y: np.ndarray, rows: np.ndarray | None = None, counts: np.ndarray | None = None
    ) -> Reduction:
        """Reduce some of the rows.

        Parameters
        ----------
        y : (k,) array
            Response of these rows, less any offset.
        rows : (k,) int array, optional
            Which rows, each once; all by default.
        counts : (k,) array, optional
            How often each of them counts; positive.

        Returns
        -------
        Reduction

        Raises
        ------
        DesignError
            If these rows do not identify the model.
        """
        every = rows is None or len(rows) == len(self.X)
        kept = slice(None) if rows is None or every else rows
        X = self.X[kept]
        groupings = [factor if every else self._of_rows(factor, kept, X) for factor in self.groupings]
        self._check(groupings, len(X))
        residual = self.residual
        if residual is not None and rows is not None and not every:
            residual = residual.take(rows)
        layout = arrange(groupings, None if residual is None else residual.codes)
        levels = {factor: level for level, factor in enumerate(layout.order)}
        precision = None if self.weights is None else self.weights[kept]
        weights = precision
        if counts is not None:
            weights = counts if precision is None else counts * precision
        reduction = reduce_rows(
            y,
            X,
            [groupings[factor] for factor in layout.chain],
            tuple(replace(term, level=levels[term.level]) for term in self.terms),
            weights,
            [groupings[factor] for factor in layout.root],
            residual,
        )
        return reduction if counts is None else _counted(reduction, counts, precision)

    def _of_rows(self, factor: Grouping, rows: np.ndarray | slice, X: np.ndarray) -> Grouping:
        """A factor on some rows, its groups numbered anew without those that have no row left."""
        codes = factor.codes[rows]
        present = np.bincount(codes, minlength=factor.size) > 0
        size = int(np.count_nonzero(present))
        if size < factor.size:
            codes = (np.cumsum(present) - 1)[codes]
        # One array where the effects are the fixed ones: their coordinates are then found once.
        same = same_memory(factor.Z, self.X)
        related = factor.relationship
        if related is not None:
            left = np.flatnonzero(present)
            related = related[np.ix_(left, left)]
        return Grouping(X if same else factor.Z[rows], codes, size, factor.label, related)

    def _check(self, groupings: Sequence[Grouping], n: int) -> None:
        """Refuse what :func:`jaxmixed.frame.build_frame` refuses of whole data."""
        for term, label, width in zip(self.terms, self.labels, self.widths, strict=True):
            size = groupings[term.level].size
            if size < 2:
                raise DesignError(
                    f"the grouping {label.group!r} has one level in the rows used; a variance between groups "
                    "needs at least two"
                )
            together = max(width, 1) if term.covariance.name in STRUCTURES else 1
            if together * size >= n and is_plain(groupings[term.level]):
                raise DesignError(
                    f"the grouping {label.group!r} has {together * size} random effects for {n} rows "
                    "used, which cannot be told from the residuals"
                )
        for position, (term, label) in enumerate(zip(self.terms, self.labels, strict=True)):
            for other, known in zip(self.terms[:position], self.labels[:position], strict=True):
                one, two = groupings[term.level], groupings[other.level]
                if one is two or one.size != two.size or not set(label.names) & set(known.names):
                    continue
                partner = np.empty(one.size, dtype=np.int64)
                partner[one.codes] = two.codes
                alike = is_plain(one) == is_plain(two)
                if alike and np.array_equal(partner[one.codes], two.codes):
                    raise DesignError(
                        f"the groupings {known.group!r} and {label.group!r} split the rows used into the "
                        f"same {one.size} groups, so their variances cannot be told apart"
                    )


def _counted(reduction: Reduction, counts: np.ndarray, precision: np.ndarray | None) -> Reduction:
    """Statistics in which a row counts as so many rows, not as one row of so much precision."""
    nobs = np.asarray(float(counts.sum()))
    logs = np.asarray(0.0 if precision is None else float(counts @ np.log(precision)))
    rank = len(reduction.fixed.columns.keep)
    if nobs <= rank:
        raise DesignError(
            f"the row weights add up to {nobs:g}, no more than the {rank} fixed-effect columns: no residual "
            "variance can be estimated"
        )
    return replace(
        reduction,
        stats=replace(reduction.stats, nobs=nobs, sum_log_weights=logs),
        compact=replace(reduction.compact, nobs=nobs, sum_log_weights=logs),
    )
