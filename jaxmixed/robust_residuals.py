r"""The fitted covariance of correlated residuals, as cluster-robust covariances use it.

Rows of a residual group have the covariance :math:`W^{-1/2} R W^{-1/2}` relative to sigma squared. Groups of
one pattern share R, and with it its Cholesky factor.
"""

import numpy as np

from jaxmixed.residual_groups import ResidualDesign, pattern_matrices, patterns_of


class CorrelatedResiduals:
    """Covariance of the rows' residuals, group by group.

    Parameters
    ----------
    design : ResidualDesign
    free : (k,) array
        Free parameters of its structure.
    weights : (n,) array or None
        Precision weights.
    """

    def __init__(self, design: ResidualDesign, free: np.ndarray, weights: np.ndarray | None) -> None:
        n = len(design.codes)
        self.codes = design.codes
        self.root_weights = np.ones(n) if weights is None else np.sqrt(weights)
        self.pattern, self.position = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        patterns = patterns_of(design)
        self.matrices = pattern_matrices(design.covariance, free, patterns)
        self.inverse_roots = [np.linalg.inv(np.linalg.cholesky(R)) for R in self.matrices]
        for number, own in enumerate(patterns):
            self.pattern[own.rows] = number
            self.position[own.rows] = np.arange(own.rows.shape[1])

    def _places(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """For each pattern among some rows, whole groups of them: where each group's rows stand, (g, t)."""
        order = np.lexsort((self.position[rows], self.codes[rows], self.pattern[rows]))
        numbers, first = np.unique(self.pattern[rows][order], return_index=True)
        parts = np.split(order, first[1:])
        return [
            (int(u), part.reshape(-1, len(self.matrices[u]))) for u, part in zip(numbers, parts, strict=True)
        ]

    def whitened(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Values of some rows, whole groups of them, in coordinates in which the residuals' covariance is 1.

        Parameters
        ----------
        rows : (a,) int array
        values : (a, c) array

        Returns
        -------
        (a, c) array
            The rows of a group stand where they stood.
        """
        scaled = values * self.root_weights[rows, None]
        found = np.empty_like(scaled)
        for pattern, places in self._places(rows):
            found[places] = self.inverse_roots[pattern] @ scaled[places]
        return found

    def covariances(self, rows: np.ndarray) -> np.ndarray:
        """Covariances of the rows of clusters, relative to sigma squared.

        Parameters
        ----------
        rows : (b, size) int array
            Whole groups lie within each cluster.

        Returns
        -------
        (b, size, size) array
        """
        b, size = rows.shape
        found = np.zeros((b, size, size))
        for pattern, places in self._places(rows.ravel()):
            cluster, own = places[:, :1] // size, places % size
            found[cluster[:, :, None], own[:, :, None], own[:, None, :]] = self.matrices[pattern]
        scale = self.root_weights[rows]
        return found / (scale[:, :, None] * scale[:, None, :])
