r"""Optimal design: how many schools, and how many students of each, a trial's budget should buy.

The expected information about a treatment effect at planning values of the variances is the inverse of its
generalised least-squares variance, an element of

.. math:: \operatorname{Cov}(\hat\beta) = \Bigl(\sum_j m_j\, X_j' V_j^{-1} X_j\Bigr)^{-1}.

Students of one school with the same covariates are one row with a *frequency*, schools of one kind are one
group with a frequency: both are real numbers, in which the statistics of the model are smooth. So the design
that is best for a budget is found by gradient ascent, the budget kept by a softmax over what it is spent on.

First table: a cluster-randomised trial, schools assigned to arms, with costs of a school and of a student and
variances between and within schools that may differ between the arms. The closed forms are

.. math::
    n_a = \sqrt{\frac{c_a}{s_a} \frac{\sigma_a^2}{\tau_a^2}}, \qquad
    m_a \propto \sqrt{\frac{\tau_a^2 + \sigma_a^2 / n_a}{c_a + s_a n_a}}

for n students in each of m schools of arm a that cost c a school and s a student; with equal arms
:math:`n = \sqrt{(c/s)(1 - \rho)/\rho}`, :math:`\rho` the intraclass correlation (Raudenbush 1997; van
Breukelen & Candel 2018).

Second table: ten given schools, their arms fixed, a student of some of them costing more. For the plain
difference of the arms the marginal information per unit of cost is the same in every school of an arm, which
is a closed form, too. With adjustment for a covariate of the schools there is none, and the gradient does not
mind: the best allocation then moves to schools whose covariate is near the other arm's.

    python examples/optimal_design.py

References
----------
Raudenbush (1997), Statistical analysis and optimal design for cluster randomized trials, Psychological
Methods 2(2), 173-185; van Breukelen & Candel (2018), Efficient design of cluster randomized trials with
treatment-dependent costs and treatment-dependent unknown variances, Statistics in Medicine 37(21), 3027-3046.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import Array

import jaxmixed as jm

BUDGET = 10_000.0


class Plan(NamedTuple):
    """Planning values of the two arms, (2,) each: control, treatment.

    Attributes
    ----------
    tau, sigma : (2,) array
        Standard deviations between the schools of an arm, and between the students of a school.
    per_school, per_student : (2,) array
        Costs.
    """

    tau: Array
    sigma: Array
    per_school: Array
    per_student: Array


def information(
    X: Array, arm: Array, students: Array, schools: Array, tau: Array, sigma: Array, effect: int = 1
) -> Array:
    """Expected information about a fixed effect, by kinds of schools.

    Parameters
    ----------
    X : (k, p) array
        Fixed-effects columns of each kind.
    arm : (k,) int array
    students, schools : (k,) array
        Students in each school of a kind, and schools of that kind: any positive numbers.
    tau, sigma : (2,) array
        Of the arms.
    effect : int
        Which column of X.

    Returns
    -------
    scalar
        Inverse of the variance of its generalised least-squares estimate.
    """
    k = len(arm)
    stats = jm.statistics.summarise(
        jnp.zeros(k),  # the information does not depend on the response
        X,
        jnp.eye(2)[arm],  # a random intercept of its own variance in each arm
        jnp.arange(k),
        num_groups=k,
        weights=1 / sigma[arm] ** 2,
        frequencies=[students, schools],
        structures="independent",
        standardise=False,
    )
    precision = jm.likelihood.eliminate(jm.likelihood.level_factors(tau, stats), stats).schur[:-1, :-1]
    return 1 / jnp.linalg.inv(precision)[effect, effect]


def ascend(objective: Callable[[Array], Array], size: int, steps: int, rate: float = 0.1) -> Array:
    """Shares, positive and summing to one, that maximise an objective: Adam on the logits of a softmax."""
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state: tuple, _: None) -> tuple[tuple, None]:
        logits, moments = state
        gradient = jax.grad(lambda logits: -objective(jax.nn.softmax(logits)))(logits)
        updates, moments = optimiser.update(gradient, moments)
        return (optax.apply_updates(logits, updates), moments), None

    start = jnp.zeros(size)
    (logits, _), _ = jax.lax.scan(step, (start, optimiser.init(start)), length=steps)
    return jax.nn.softmax(logits)


# Schools and students per school, by arm


def bought(shares: Array, plan: Plan) -> tuple[Array, Array]:
    """Schools of each arm, and students in each of them, for shares of the budget: schools, then students."""
    schools = BUDGET * shares[:2] / plan.per_school
    students = BUDGET * shares[2:] / plan.per_student
    return schools, students / schools


@partial(jax.jit, static_argnames="steps")
@partial(jax.vmap, in_axes=(0, None))
def best_trial(plan: Plan, steps: int) -> tuple[Array, Array, Array, Array]:
    """Schools, students in each, and the information: of the best trial and of one with equal shares."""
    arm = jnp.arange(2)
    X = jnp.stack([jnp.ones(2), arm], axis=1)

    def value(shares: Array) -> Array:
        schools, students = bought(shares, plan)
        return information(X, arm, students, schools, plan.tau, plan.sigma)

    shares = ascend(lambda shares: jnp.log(value(shares)), 4, steps)
    return *bought(shares, plan), value(shares), value(jnp.full(4, 0.25))


def closed_form(plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Schools of each arm and students in each of them, by the formulas at the top."""
    tau, sigma, per_school, per_student = (np.asarray(value) for value in plan)
    students = np.sqrt(per_school / per_student) * sigma / tau
    cost = per_school + per_student * students
    schools = np.sqrt((tau**2 + sigma**2 / students) / cost)
    return BUDGET * schools / np.sum(schools * cost, axis=-1, keepdims=True), students


def plans() -> tuple[list[str], Plan]:
    """Trials to be planned: equal arms of total variance one, then arms that differ."""
    names, rows = [], []
    for icc in (0.05, 0.2):
        for ratio in (10.0, 50.0):
            names.append(f"icc {icc:g}, a school costs {ratio:g} students")
            tau, sigma, one = np.sqrt(icc) * np.ones(2), np.sqrt(1 - icc) * np.ones(2), np.ones(2)
            rows.append(Plan(tau, sigma, ratio * one, one))
    equal = rows[-1]
    names += ["treated students vary more", "treated schools vary more", "treatment is costly"]
    rows.append(equal._replace(sigma=equal.sigma * np.array([1.0, 1.5])))
    rows.append(equal._replace(tau=equal.tau * np.array([1.0, 2.0])))
    rows.append(equal._replace(per_school=np.array([50.0, 200.0]), per_student=np.array([1.0, 4.0])))
    return names, Plan(*(jnp.asarray(np.stack(field)) for field in zip(*rows, strict=True)))


def trials(steps: int) -> pd.DataFrame:
    """The first table."""
    names, plan = plans()
    schools, students, best, equal = (np.asarray(found) for found in best_trial(plan, steps))
    closed_schools, closed_students = closed_form(plan)
    columns = {
        "students": students,
        "students, closed form": closed_students,
        "schools": schools,
        "schools, closed form": closed_schools,
        "efficiency of equal shares": np.stack([equal / best] * 2, axis=1),
    }
    index = pd.MultiIndex.from_product([names, ["control", "treated"]], names=["trial", "arm"])
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)


# Students of given schools


class Schools(NamedTuple):
    """Ten given schools: arm, cost of a student, and a covariate, the schools' mean of an earlier test."""

    arm: np.ndarray
    cost: np.ndarray
    covariate: np.ndarray


SCHOOLS = Schools(
    arm=np.repeat([0, 1], 5),
    cost=np.array([1.0, 1.0, 1.5, 2.0, 2.0, 1.0, 1.0, 1.5, 2.0, 2.0]),
    covariate=np.array([-1.5, 0.0, 0.5, -0.5, -1.0, 1.5, 0.0, -0.5, 0.5, 1.0]),
)
TAU, SIGMA, STUDENTS_BUDGET = 0.3, 1.0, 300.0


@partial(jax.jit, static_argnames="steps")
def best_students(X: Array, arm: Array, cost: Array, steps: int) -> tuple[Array, Array, Array]:
    """Students of each school, and the information: of the best allocation and of equal numbers."""

    def value(students: Array) -> Array:
        two = jnp.ones(2)
        return information(X, arm, students, jnp.ones(len(arm)), TAU * two, SIGMA * two)

    shares = ascend(lambda shares: jnp.log(value(STUDENTS_BUDGET * shares / cost)), len(arm), steps)
    students = STUDENTS_BUDGET * shares / cost
    return students, value(students), value(jnp.full(len(arm), STUDENTS_BUDGET / jnp.sum(cost)))


def equal_margins(cost: np.ndarray, arm: np.ndarray) -> np.ndarray:
    r"""Students of each school for the plain difference of the arms.

    School j has information :math:`1 / (\tau^2 + \sigma^2 / n_j)` about the mean of its arm, whose derivative
    over the cost of a student is the same in all schools of one arm: :math:`n_j \tau^2 + \sigma^2 = \kappa_a
    / \sqrt{c_j}`. An arm's :math:`\kappa_a` follows from what is spent on it, and here the arms are alike.
    """
    students = np.zeros(len(arm))
    for own in (arm == 0, arm == 1):
        spent = STUDENTS_BUDGET / 2
        kappa = (spent * TAU**2 + SIGMA**2 * np.sum(cost[own])) / np.sum(np.sqrt(cost[own]))
        students[own] = (kappa / np.sqrt(cost[own]) - SIGMA**2) / TAU**2
    return students


def allocations(steps: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """The second table, and the efficiency of equal numbers of students."""
    arm, cost = jnp.asarray(SCHOOLS.arm), jnp.asarray(SCHOOLS.cost)
    plain = np.column_stack([np.ones(len(SCHOOLS.arm)), SCHOOLS.arm])
    table = pd.DataFrame(SCHOOLS._asdict())
    efficiency = {}
    for name, X in (("plain", plain), ("adjusted", np.column_stack([plain, SCHOOLS.covariate]))):
        students, best, equal = best_students(jnp.asarray(X), arm, cost, steps)
        table[f"students, {name}"] = np.asarray(students)
        efficiency[name] = float(equal / best)
    table.insert(4, "closed form, plain", equal_margins(SCHOOLS.cost, SCHOOLS.arm))
    return table, efficiency


def main(steps: int = 2000) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Find the best trials and the best allocations, and compare them with the closed forms.

    Parameters
    ----------
    steps : int
        Of the optimiser.

    Returns
    -------
    trials : DataFrame
        A row per trial and arm: students in each school and schools, also by the closed forms; information of
        a trial that spends equal shares on schools and students of both arms, relative to the best.
    allocations : DataFrame
        A row per school: students for the plain and for the adjusted difference of the arms.
    efficiency : dict
        Information of equal numbers of students, as a share of that of the best allocation.
    """
    with jm.precision.double_precision():
        first = trials(steps)
        second, efficiency = allocations(steps)
    print(f"Cluster-randomised trials that cost {BUDGET:g}")
    print(first.to_string(float_format="{:.2f}".format))
    print(f"\nStudents of ten given schools that cost {STUDENTS_BUDGET:g}")
    print(second.to_string(float_format="{:.2f}".format))
    for name, value in efficiency.items():
        print(f"Efficiency of equal numbers of students, {name}: {value:.3f}")
    return first, second, efficiency


if __name__ == "__main__":
    main()
