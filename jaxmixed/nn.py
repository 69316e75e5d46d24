r"""Random effects on top of any network: a head for equinox, flax, haiku, or one's own functions.

.. math:: y = f(x) + \sum_k Z_k b_k + e, \quad b_k \sim N(0, \sigma^2 T_k T_k')
    \qquad e \sim N(0, \sigma^2 W^{-1}),

f the network. The effects are integrated out, not trained: the loss is minus the marginal log-likelihood
of ``y - f(x)``, exact, at a cost of O(rows q^2 + groups q^3). Covariances are positive semidefinite whatever
the parameters, for the factor T is what is trained. The head is a pytree that any optimiser can hold.

References
----------
Simchoni & Rosset (2023), Journal of Machine Learning Research 24(156), 1-57, for networks with random effects
and their loss; Robinson (1991), Statistical Science 6(1), 15-32, for the predicted effects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from jaxmixed.covariance import Covariance, covariance_structure
from jaxmixed.effects import blup
from jaxmixed.errors import DataError
from jaxmixed.likelihood import Parameters, loglik
from jaxmixed.statistics import SufficientStatistics, listed, summarise

Columns = Sequence[Float[Array, "n q"]] | Float[Array, "n q"]
Codes = Sequence[Int[Array, " n"]] | Int[Array, " n"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True, slots=True)
class RandomEffects:
    """Trainable covariances of the random effects of one or more nested grouping factors, finest first.

    Every method is pure and composes with jit, grad and vmap. Made by :meth:`init`.

    Attributes
    ----------
    theta : (k,) array
        Parameters of the relative factors T, ``T T' = G / sigma**2``, one grouping factor after the other, of
        any sign. At exactly zero the gradient vanishes: training leaves a head without effects as it is.
    log_sigma : scalar
        Logarithm of the residual standard deviation (of a row of weight 1).
    structures : tuple of Covariance
        Static: the covariance structure of each factor.

    Examples
    --------
    >>> head = RandomEffects.init(1)
    >>> y, groups = jnp.array([1.0, 2.0, 4.0, 7.0]), jnp.array([0, 0, 1, 1])
    >>> mean, Z = jnp.full(4, 3.5), jnp.ones((4, 1))  # the mean is the output of a network
    >>> round(float(head.loss(mean, y, Z, groups, num_groups=2)), 3)
    9.941
    >>> effects = head.effects(y - mean, Z, groups, num_groups=2)
    >>> [round(float(value), 3) for value in head.predict(mean, effects, Z, groups)]
    [2.167, 2.167, 4.833, 4.833]
    """

    theta: Float[Array, " k"]
    log_sigma: Float[Array, ""]
    structures: tuple[Covariance, ...] = field(metadata={"static": True})

    @classmethod
    def init(
        cls,
        q: int | Sequence[int],
        structures: str | Covariance | Sequence[str | Covariance] = "unstructured",
        *,
        sigma: float = 1.0,
    ) -> Self:
        """Head whose effects all start with the standard deviation `sigma`, as do the residuals.

        Parameters
        ----------
        q : int, or a sequence of int
            Number of random-effects columns of each factor, finest factor first.
        structures : str or Covariance, or a sequence of them
            "unstructured", "independent", "identity", "exchangeable", or a structure of one's own.
        sigma : float
            About the spread of the response.

        Returns
        -------
        RandomEffects
        """
        widths, asked = listed(q), listed(structures)
        if len(asked) == 1:
            asked = asked * len(widths)
        built = tuple(
            covariance_structure(name, width) if isinstance(name, str) else name
            for name, width in zip(asked, widths, strict=True)
        )
        theta = np.concatenate([structure.initial() for structure in built])
        return cls(
            theta=jnp.asarray(theta, float), log_sigma=jnp.log(jnp.asarray(sigma, float)), structures=built
        )

    @property
    def sigma(self) -> Float[Array, ""]:
        """Residual standard deviation."""
        return jnp.exp(self.log_sigma)

    def covariances(self) -> tuple[Float[Array, "q q"], ...]:
        """Covariance matrix of each factor's effects, absolute scale."""
        ends = np.cumsum([structure.num_params for structure in self.structures])
        parts = jnp.split(self.theta, ends[:-1])
        factors = [structure.factor(part) for structure, part in zip(self.structures, parts, strict=True)]
        return tuple(self.sigma**2 * T @ T.T for T in factors)

    def summarise(
        self,
        residual: Float[Array, " n"],
        Z: Columns,
        groups: Codes,
        *,
        num_groups: int | Sequence[int],
        **options: Any,
    ) -> SufficientStatistics:
        """Statistics of ``y - mean``, for any function of `likelihood` or `effects`; without fixed effects.

        Parameters
        ----------
        residual : (n,) array
            Response less the network's output.
        Z, groups, num_groups, **options
            As in :func:`jaxmixed.statistics.summarise`, with its `weights` and `frequencies`: rows of
            frequency 0 pad minibatches to one shape.

        Returns
        -------
        SufficientStatistics
        """
        if jnp.ndim(residual) != 1:
            raise DataError(
                f"the residual has shape {jnp.shape(residual)}, but one number a row is needed. A network's "
                "output of shape (n, 1) pairs every row with every other in y - mean: take its column 0."
            )
        X = jnp.zeros((len(residual), 0), residual.dtype)
        structures = self.structures
        return summarise(residual, X, Z, groups, num_groups=num_groups, structures=structures, **options)

    def loss(
        self,
        mean: Float[Array, " n"],
        y: Float[Array, " n"],
        Z: Columns,
        groups: Codes,
        *,
        num_groups: int | Sequence[int],
        scale: float = 1.0,
        **options: Any,
    ) -> Float[Array, ""]:
        """Minus the marginal log-likelihood, times `scale`.

        A minibatch must hold whole groups (of the coarsest factor), for the rows of a group are dependent.
        Groups are not: with groups drawn at random and ``scale = groups of the data / groups of the batch``
        the loss and its gradient are unbiased.

        Parameters
        ----------
        mean : (n,) array
            Output of the network.
        y : (n,) array
            Response.
        Z, groups, num_groups, **options
            See :meth:`summarise`; codes count the groups of the batch.
        scale : float

        Returns
        -------
        scalar
        """
        stats = self.summarise(y - mean, Z, groups, num_groups=num_groups, **options)
        none = jnp.zeros(0, stats.total.dtype)
        return -scale * loglik(Parameters(none, self.theta, self.sigma), stats)

    def effects(
        self,
        residual: Float[Array, " n"],
        Z: Columns,
        groups: Codes,
        *,
        num_groups: int | Sequence[int],
        **options: Any,
    ) -> tuple[Float[Array, "q m"], ...]:
        """Best predictions of each factor's effects given ``y - mean``; zero for a group without rows."""
        return blup(self.theta, self.summarise(residual, Z, groups, num_groups=num_groups, **options))

    def predict(
        self, mean: Float[Array, " n"], effects: Sequence[Float[Array, "q m"]], Z: Columns, groups: Codes
    ) -> Float[Array, " n"]:
        """Network's output plus the effects of each row's groups; a code of -1 is a new group: none."""
        total = mean
        for block, code, values in zip(listed(Z), listed(groups), effects, strict=True):
            total = total + jnp.sum(jnp.where(code >= 0, values[:, code], 0) * block.T, axis=0)
        return total
