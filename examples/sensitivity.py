r"""Exact sensitivity of every estimate to every case: the infinitesimal jackknife of a whole mixed model.

Each row, and each subject, counts with a *frequency* f: 1 as observed, 0 deleted, 2 copied (a subject with
random effects of its own). The estimates are a smooth function of all frequencies, search for the maximum
included: :func:`jaxmixed.solve` differentiates the maximiser by the implicit function theorem. What deletion
of a case changes is then predicted, without a refit, by the first terms of the Taylor series at f = 1,

.. math::
    \hat\psi(1 - e_i) - \hat\psi(1) \approx
    -\frac{\partial\hat\psi}{\partial f_i} + \frac12 \frac{\partial^2\hat\psi}{\partial f_i^2}.

The first term is Cook's local influence of the case's weight (Cook 1986; for variance components Beckman,
Nachtsheim & Cook 1987), here on fixed effects, standard deviations, correlation, log-likelihood and all BLUPs
at once. The second term makes up for most of what the first one misses: in a balanced design a fixed effect's
change on deletion of one of m subjects is missed by 1/m of itself, and with the second term by 1/m squared.

The tables compare the predictions with the truth: the model refitted without each row and without each
subject, all refits at once under ``vmap``.

    python examples/sensitivity.py

References
----------
Cook (1986), Assessment of local influence, Journal of the Royal Statistical Society B 48(2), 133-169;
Beckman, Nachtsheim & Cook (1987), Diagnostics for mixed-model analysis of variance, Technometrics 29(4),
413-426; Jaeckel (1972), The infinitesimal jackknife, Bell Laboratories memorandum 72-1215-11.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax import Array

import jaxmixed as jm
from jaxmixed.model_arrays import Arrays

NAMES = ("(Intercept)", "Days", "sd (Intercept)", "sd Days", "correlation", "sigma", "log-likelihood")


def estimates(model: Arrays, frequencies: Array) -> Array:
    """All estimates at the frequencies of the rows and then of the subjects: `NAMES`, then the BLUPs."""
    n = len(model.y)
    fit = jm.solve(model.summarise(frequencies=[frequencies[:n], frequencies[n:]]))
    T = model.structures[0][0].factor(fit.theta)
    sd = jnp.linalg.norm(T, axis=1)  # relative to sigma
    correlation = T[0] @ T[1] / (sd[0] * sd[1])
    natural = [*fit.beta, *(fit.sigma * sd), correlation, fit.sigma, fit.loglik]
    return jnp.concatenate([jnp.stack(natural), fit.effects[0].ravel()])


class Expansion(NamedTuple):
    """Estimates, and their first and second derivatives along a direction of the frequencies."""

    value: Array
    first: Array
    second: Array


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0))
def expand(model: Arrays, frequencies: Array, direction: Array) -> Expansion:
    """Expand the estimates around given frequencies.

    Two forward derivatives, one of the other. With unit vectors for directions, all at once: `first` are the
    columns of the Jacobian, `second` the diagonals of the Hessians. (For a few estimates of very many cases
    ``jax.jacrev(estimates, argnums=1)`` has the same Jacobian from one pass per estimate.)
    """

    def along(frequencies: Array) -> tuple[Array, Array]:
        return jax.jvp(lambda f: estimates(model, f), (frequencies,), (direction,))

    (value, first), (_, second) = jax.jvp(along, (frequencies,), (direction,))
    return Expansion(value, first, second)


class Changes(NamedTuple):
    """What the deletion of each case (rows, then subjects) changes in each estimate, (cases, estimates)."""

    linear: np.ndarray
    quadratic: np.ndarray
    true: np.ndarray


def changes(model: Arrays) -> tuple[np.ndarray, Changes]:
    """Estimates, and the predicted and true changes."""
    cases = len(model.y) + model.num_groups[0]
    one, unit = jnp.ones((cases, cases)), jnp.eye(cases)
    at = Expansion(*map(np.asarray, expand(model, one, unit)))
    # The same program, whose values are now refits (a derivative at a frequency of zero has no meaning).
    deleted = np.asarray(expand(model, one - unit, unit).value)
    estimate = at.value[0]
    return estimate, Changes(-at.first, -at.first + at.second / 2, deleted - estimate)


def blups(found: np.ndarray, model: Arrays) -> np.ndarray:
    """Changes of the BLUPs, (cases, q, m), NaN for a deleted subject's own."""
    m = model.num_groups[0]
    found = found[:, len(NAMES) :].reshape(len(found), -1, m).copy()
    found[len(model.y) + np.arange(m), :, np.arange(m)] = np.nan
    return found


def agreement(found: Changes, model: Arrays) -> pd.DataFrame:
    """How well the deletions of all rows, and of all subjects, are predicted."""
    n = len(model.y)
    lines = {}
    for kind, own in (("row", slice(n)), ("subject", slice(n, None))):
        columns = {name: [change[own, k] for change in found] for k, name in enumerate(NAMES)}
        columns["BLUPs"] = [blups(change, model)[own].ravel() for change in found]
        for name, parts in columns.items():
            linear, quadratic, true = (part[np.isfinite(part)] for part in parts)
            size = np.sqrt(np.mean(true**2))
            lines[kind, name] = {
                "r, linear": np.corrcoef(linear, true)[0, 1],
                "r, quadratic": np.corrcoef(quadratic, true)[0, 1],
                "error, linear": np.sqrt(np.mean((linear - true) ** 2)) / size,
                "error, quadratic": np.sqrt(np.mean((quadratic - true) ** 2)) / size,
            }
    return pd.DataFrame(lines).T.rename_axis(["case", "estimate"])


def influential(
    estimate: np.ndarray, found: Changes, model: Arrays, data: pd.DataFrame, top: int
) -> pd.DataFrame:
    """The rows and the subjects whose deletion is predicted to change each estimate most."""
    n = len(model.y)
    rows = [f"{subject}, day {day}" for subject, day in zip(data["Subject"], data["Days"], strict=True)]
    cases = np.array(rows + list(data["Subject"].cat.categories))
    lines = []
    for kind, own in (("row", np.arange(n)), ("subject", np.arange(n, len(cases)))):
        for k, name in enumerate(NAMES):
            for case in own[np.argsort(-np.abs(found.linear[own, k]))[:top]]:
                predicted = {field: change[case, k] for field, change in found._asdict().items()}
                what = {"case": kind, "estimate": name, "value": estimate[k], "deleted": cases[case]}
                lines.append(what | predicted)
    return pd.DataFrame(lines).set_index(["case", "estimate"])


def main(top: int = 2) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predict all deletions from sleepstudy (18 subjects, ten days each), and compare with refits.

    Parameters
    ----------
    top : int
        Most influential cases to show for each estimate.

    Returns
    -------
    influential : DataFrame
        The change on deletion: `linear` and `quadratic` predictions, and the `true` one.
    agreement : DataFrame
        Correlation of predicted and true changes over all cases, and root mean squared error relative to the
        root mean square of the true ones, of the linear and of the quadratic prediction.
    """
    data = jm.datasets.load("sleepstudy")
    model = jm.arrays("Reaction ~ Days + (Days | Subject)", data)
    with jm.precision.double_precision():
        estimate, found = changes(model)
    first, second = influential(estimate, found, model, data, top), agreement(found, model)
    print("Most influential cases", first.to_string(float_format="{:.3f}".format), sep="\n", end="\n\n")
    print("Predicted and true changes of all cases", second.to_string(float_format="{:.4f}".format), sep="\n")
    return first, second


if __name__ == "__main__":
    main()
