r"""How often rows and groups count: frequency weights, and sampling weights of every level.

With weights :math:`w_{i|j}` of the rows within their group, :math:`w_{j|k}` of the groups within theirs, and
so on, the logarithm of the (pseudo-)likelihood is

.. math:: \sum_k w_k \log \int \exp\Big\{ \sum_j w_{j|k} \log \int \exp\Big\{ \sum_i w_{i|jk} \log f(y_{ijk} |
   b_j, b_k) \Big\} \phi(b_j)\, db_j \Big\} \phi(b_k)\, db_k .

Of a Gaussian model every integral is that of the model without weights, with cross-products multiplied:
those of a level's own columns by the weights of the rows and of all finer groups around them, so that a group
hands to the coarser ones what its copies would. What it adds to ``log|V|`` counts as often as it does itself.

References
----------
Rabe-Hesketh & Skrondal (2006), Multilevel modelling of complex survey data, Journal of the Royal Statistical
Society A 169(4), 805-827, equation 4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxmixed.layout import Grouping


class Frequencies(NamedTuple):
    """How often each row counts in its finest group, and each group in the next coarser one.

    Attributes
    ----------
    rows : (n,) array
        Positive.
    groups : tuple of (m,) array or None
        Of the groups ``0 .. m-1`` of each factor of the chain, finest first; None for once.
    """

    rows: np.ndarray
    groups: tuple[np.ndarray | None, ...]

    def within(self, groupings: Sequence[Grouping]) -> list[np.ndarray]:
        """How often each row counts among the columns of each factor, and at the end in X and the response.

        Parameters
        ----------
        groupings : sequence of Grouping
            The nested chain, finest first.

        Returns
        -------
        list of (n,) arrays
            One more than there are factors.

        Examples
        --------
        >>> g = Grouping(np.ones((3, 1)), np.array([0, 0, 1]), 2, "g")
        >>> Frequencies(np.array([1.0, 2.0, 1.0]), (np.array([3.0, 1.0]),)).within([g])
        [array([1., 2., 1.]), array([3., 6., 1.])]
        """
        found = [self.rows]
        for grouping, own in zip(groupings, self.groups, strict=True):
            found.append(found[-1] if own is None else found[-1] * own[grouping.codes])
        return found

    def counts(self, groupings: Sequence[Grouping]) -> list[np.ndarray]:
        """How often each group counts in all: as often as it and the groups around it do together.

        Parameters
        ----------
        groupings : sequence of Grouping
            The nested chain, finest first.

        Returns
        -------
        list of (m,) arrays

        Examples
        --------
        >>> g = Grouping(np.ones((3, 1)), np.array([0, 0, 1]), 2, "g")
        >>> Frequencies(np.ones(3), (np.array([3.0, 1.0]),)).counts([g])
        [array([3., 1.])]
        """
        found: list[np.ndarray] = []
        of_row = np.ones(len(self.rows))
        for grouping, own in zip(groupings[::-1], self.groups[::-1], strict=True):
            of_row = of_row if own is None else of_row * own[grouping.codes]
            count = np.empty(grouping.size)
            count[grouping.codes] = of_row
            found.insert(0, count)
        return found
