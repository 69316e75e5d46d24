"""Families of residual correlation against R, closed forms and finite differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmixed import autocorrelations as series
from jaxmixed.errors import DesignError
from jaxmixed.label_families import canonical_partial, correlations_of
from jaxmixed.precision import double_precision, to_host
from jaxmixed.programs import Program
from jaxmixed.residual_covariance import Occasions, ResidualCovariance
from jaxmixed.residual_families import (
    AnteDependence,
    Autoregressive,
    AutoregressiveMovingAverage,
    Banded,
    Custom,
    Exchangeable,
    Exponential,
    Family,
    Independent,
    MovingAverage,
    Toeplitz,
    Unstructured,
    check_custom,
    time_unit,
)
from jaxmixed.supports import Correlation, Fixed, Length, Positive, Real, Unit
from tests.support.compilation import QUICKLY

ROUNDING = 1e-12
"""Of correlations between minus one and one by two routes."""

DIFFERENCES = 1e-7
"""Of derivatives by central differences with steps of 1e-5, relative to the largest."""

LABELS = ("w1", "w2", "w4", "w8", "w12")
TIMES = np.array([0.0, 1.0, 2.0, 3.0, 4.0])


def damped(params, times):
    """What AR(1) does, as users write it."""
    return params["rho"] ** jnp.abs(times[:, None] - times[None, :])


def damped_root(params, times):
    """Its Cholesky factor: every time from the one before."""
    step = jnp.concatenate([jnp.zeros(1), params["rho"] ** jnp.diff(times)])
    own = jnp.sqrt(1 - step**2)
    size = len(times)
    rows = [own[0] * jnp.eye(size)[0]]
    for i in range(1, size):
        rows.append(step[i] * rows[-1] + own[i] * jnp.eye(size)[i])
    return jnp.stack(rows)


FAMILIES = {
    "independent": Independent(),
    "exchangeable": Exchangeable(5),
    "ar1": Autoregressive(1, 6),
    "ar3": Autoregressive(3, 6),
    "ma2": MovingAverage(2, 6),
    "arma12": AutoregressiveMovingAverage(1, 2, 6),
    "exponential": Exponential(),
    "nugget": Exponential(True, 2.0),
    "toeplitz": Toeplitz(4, 4),
    "toeplitz12": Toeplitz(12, 12),  # beyond what is written out
    "banded": Banded(2, 5),
    "unstructured": Unstructured(5),
    "antedependence": AnteDependence(5),
    "custom": Custom(damped, (("rho", Unit(0.4)),)),
    "custom root": Custom(damped_root, (("rho", Unit(0.4)),), cholesky=True),
}
OF_LAGS = {"ar1", "ar3", "ma2", "arma12", "toeplitz", "toeplitz12", "exponential", "nugget"}
OF_LABELS = {"banded", "unstructured", "antedependence"}

# ARMAacf(phi, theta, 8)[-1] of R 4.2.2, stats
AUTOCORRELATIONS = [
    ([0.5, -0.3], [], "0.384615384615385 -0.107692307692308 -0.169230769230769 -0.0523076923076923 "
     "0.0246153846153846 0.028 0.00661538461538461 -0.00509230769230769"),
    ([0.5, 0.2, -0.4], [], "0.5 0.25 -0.175 -0.2375 -0.25375 -0.104375 -0.00793750000000001 0.07665625"),
    ([], [0.6, 0.25], "0.527240773286468 0.175746924428823 0 0 0 0 0 0"),
    ([], [-0.8], "-0.48780487804878 0 0 0 0 0 0 0"),
    ([0.7], [0.4], "0.818604651162791 0.573023255813953 0.401116279069767 0.280781395348837 "
     "0.196546976744186 0.13758288372093 0.0963080186046511 0.0674156130232558"),
    ([0.5, -0.3], [0.6, 0.25], "0.652861520213502 0.126065039043195 -0.132825936542453 -0.104232479984185 "
     "-0.0122684590293565 0.0251355144805773 0.0162482949490956 0.000583493130374617"),
    ([0.9], [-0.6, 0.25], "0.691099476439791 0.721465968586388 0.649319371727749 0.584387434554974 "
     "0.525948691099477 0.473353821989529 0.426018439790576 0.383416595811518"),
]  # fmt: skip


def arma(phi, theta, longest):
    """The family, and the free parameters that have these coefficients."""
    if not theta:
        return Autoregressive(len(phi), longest), np.arctanh(series.partial_of_coefficients(np.array(phi)))
    moving = np.arctanh(-series.partial_of_coefficients(-np.array(theta)))
    if not phi:
        return MovingAverage(len(theta), longest), moving
    own = np.arctanh(series.partial_of_coefficients(np.array(phi)))
    return AutoregressiveMovingAverage(len(phi), len(theta), longest), np.concatenate([own, moving])


def free_values(family: Family, seed: int = 3, spread: float = 0.6) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=spread, size=family.num_params)


def _values(free, times, present, *, family):
    """Correlations, zero for rows that pad, and natural parameters."""
    C = family.look_up(family.table(free)[None], 0, times, present)
    return jnp.where(present[:, None] & present, C, 0), family.natural(free)


def _derivatives(free, times, present, *, family):
    """First and second derivatives of both, and first ones backwards."""
    function = partial(_values, family=family)
    forward = jax.jacfwd(function)
    second = jax.jacfwd(forward)(free, times, present)
    return (*forward(free, times, present), *second, *jax.jacrev(function)(free, times, present))


TABLE = Program(lambda free, *, family: (family.table(free),), options=QUICKLY)
PRECISIONS = Program(
    lambda free, at, *, covariance: (covariance.matrices(free, at), *covariance.precisions(free, at)),
    options=QUICKLY,
)
VALUES, DERIVATIVES = Program(_values, options=QUICKLY), Program(_derivatives, options=QUICKLY)


def run(program: Program, family: Family, free, times=TIMES, present=None) -> tuple[np.ndarray, ...]:
    times = np.asarray(times, dtype=float)
    present = np.ones(len(times), dtype=bool) if present is None else present
    with double_precision():
        return to_host(program(np.asarray(free, dtype=float), times, present, family=family))


def correlation(family: Family, free, times=TIMES) -> np.ndarray:
    return run(VALUES, family, free, times)[0]


def natural(family: Family, free) -> np.ndarray:
    return run(VALUES, family, free)[1]


# Against R and closed forms


@pytest.mark.parametrize(("phi", "theta", "expected"), AUTOCORRELATIONS)
def test_autocorrelations_are_those_of_r(phi, theta, expected):
    family, free = arma(phi, theta, 8)
    assert natural(family, free) == pytest.approx([*phi, *theta], abs=ROUNDING)
    found = correlation(family, free, np.arange(9))[0]
    assert found == pytest.approx([1.0, *map(float, expected.split())], abs=ROUNDING)


def test_arma_with_gaps_is_that_of_nlme():
    # corMatrix(Initialize(corARMA(c(.5, -.3, .4), form = ~ t | g, p = 2, q = 1), data.frame(g = 1,
    # t = c(1, 2, 4, 7)))) of nlme 3.1
    family, free = arma([0.5, -0.3], [0.4], 6)
    C = correlation(family, free, [0, 1, 3, 6])
    assert C[0] == pytest.approx([1, 0.547169811320755, -0.177358490566038, 0.0306415094339623], abs=ROUNDING)
    assert C[1, 2:] == pytest.approx([-0.0264150943396226, 0.0128301886792453], abs=ROUNDING)


def test_exponential_correlations_are_those_of_nlme():
    # corExp(c(2.5, .2), form = ~ t | g, nugget = TRUE) and corCAR1(.6, form = ~ t | g) of nlme 3.1
    times = [0.5, 1.7, 2.0, 6.25]
    C = correlation(Exponential(True, 2.0), [np.log(2.5 / 2.0), np.log(0.2 / 0.8)], times)
    assert C[0] == pytest.approx([1, 0.495026713444913, 0.439049308875221, 0.080207074978243], abs=ROUNDING)
    assert C[1, 2:] == pytest.approx([0.70953634937372601, 0.12962060074710466], abs=ROUNDING)
    found = natural(Exponential(True, 2.0), [np.log(2.5 / 2.0), np.log(0.2 / 0.8)])
    assert found == pytest.approx([2.5, 0.2, np.exp(-1 / 2.5)], abs=ROUNDING)
    distance = -1 / np.log(0.6)
    car1 = correlation(Exponential(), [np.log(distance)], times)
    assert car1[0] == pytest.approx([1, 0.54172827086846, 0.46475800154489, 0.0530114507619076], abs=ROUNDING)
    assert natural(Exponential(), [np.log(distance)]) == pytest.approx([distance, 0.6], abs=ROUNDING)


@pytest.mark.parametrize(
    ("phi", "theta"), [([0.3, 0.2, 0.45], []), ([0.3, 0.2, 0.45], [0.7]), ([0.98], [-0.9])]
)
def test_ten_thousand_lags_are_those_of_the_recursion(phi, theta):
    family, free = arma(phi, theta, 10_000)
    with double_precision():
        (table,) = to_host(TABLE(free, family=family))
    expected = list(table[: len(phi) + len(theta)])
    for _ in range(10_001 - len(expected)):
        expected.append(np.dot(phi, expected[: -len(phi) - 1 : -1]))
    assert table == pytest.approx(np.array(expected), abs=1e-10)


def test_a_moving_average_ends_at_its_order():
    C = correlation(MovingAverage(2, 9), [0.3, 0.8], np.arange(10))
    assert not C[np.abs(np.subtract.outer(np.arange(10), np.arange(10))) > 2].any()


@pytest.mark.parametrize(("largest", "lowest"), [(2, -1.0), (3, -0.5), (11, -0.1)])
def test_an_exchangeable_correlation_goes_from_its_bound_to_one(largest, lowest):
    family = Exchangeable(largest)
    rho = [natural(family, [u])[0] for u in (-12.0, -1.0, 0.0, 12.0)]
    assert rho[0] == pytest.approx(lowest, abs=1e-9)
    assert rho[-1] == pytest.approx(1, abs=1e-9)
    assert np.linalg.eigvalsh(correlation(family, [-1.0], np.arange(largest)))[0] > 0
    C = correlation(family, [0.7], [3.0, 3.0, 8.0])
    assert (C[~np.eye(3, dtype=bool)] == natural(family, [0.7])[0]).all()


def test_antedependence_multiplies_the_steps():
    rho = np.array([0.9, -0.4, 0.0, 0.7])
    C = correlation(AnteDependence(5), np.arctanh(rho))
    expected = np.array([[np.prod(rho[min(i, j) : max(i, j)]) for j in range(5)] for i in range(5)])
    assert pytest.approx(expected, abs=ROUNDING) == C


def test_ar1_is_antedependence_with_equal_steps_and_exponential_at_whole_times():
    u = 0.8
    C = correlation(Autoregressive(1, 7), [u], [0, 2, 3, 7])
    assert (
        pytest.approx(np.tanh(u) ** np.abs(np.subtract.outer([0, 2, 3, 7], [0, 2, 3, 7])), abs=ROUNDING) == C
    )
    assert correlation(AnteDependence(8), [u] * 7, [0, 2, 3, 7]) == pytest.approx(C, abs=ROUNDING)
    log_range = -np.log(-np.log(np.tanh(u)))
    assert correlation(Exponential(), [log_range], [0, 2, 3, 7]) == pytest.approx(C, abs=ROUNDING)


def test_partial_autocorrelations_are_those_of_the_definition():
    """The last coefficient of the regression on the times between."""
    free = np.array([0.4, -0.9, 0.3, 0.6])
    C = correlation(Toeplitz(4, 4), free)
    for k in range(1, 5):
        last = np.linalg.solve(C[:k, :k], C[0, 1 : k + 1])[-1]
        assert last == pytest.approx(np.tanh(free[k - 1]), abs=ROUNDING)


def test_canonical_partial_correlations_are_those_of_the_definition():
    """The correlation of i and j given the labels before j."""
    family = Unstructured(5)
    free = free_values(family)
    C = correlation(family, free)
    rows, columns = np.tril_indices(5, -1)
    for u, i, j in zip(free, rows, columns, strict=True):
        pair, given = np.ix_([i, j], [i, j]), np.arange(j)
        left = C[pair] - C[np.ix_([i, j], given)] @ np.linalg.solve(
            C[np.ix_(given, given)], C[np.ix_(given, [i, j])]
        )
        assert left[0, 1] / np.sqrt(left[0, 0] * left[1, 1]) == pytest.approx(np.tanh(u), abs=ROUNDING)


def test_every_correlation_matrix_is_an_unstructured_one(rng):
    C = np.corrcoef(rng.normal(size=(60, 90)))
    with double_precision():
        found = np.asarray(correlations_of(jnp.asarray(canonical_partial(C))))
    assert found == pytest.approx(C, abs=1e-11)


def test_a_band_has_nothing_outside_and_every_label_missing_leaves_it_positive_definite():
    family = Banded(2, 5)
    C = correlation(family, free_values(family, spread=2.0))
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    assert not C[apart > 2].any()
    assert (C[apart <= 2] != 0).all()
    assert np.linalg.eigvalsh(C)[0] > 0
    assert (
        correlation(family, free_values(family, spread=2.0), [0, 3, 4]).tolist()
        == C[np.ix_([0, 3, 4], [0, 3, 4])].tolist()
    )


# What holds of all


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5])
def test_every_value_is_admissible(name, spread):
    family = FAMILIES[name]
    C = correlation(family, free_values(family, spread=spread))
    assert pytest.approx(C.T, abs=ROUNDING) == C
    assert np.diagonal(C) == pytest.approx(np.ones(5), abs=ROUNDING)
    assert np.linalg.eigvalsh(C)[0] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_values_and_derivatives_at_the_ends_are_numbers(name):
    family = FAMILIES[name]
    padded = np.array([1.0, 3.0, 4.0, 0.0, 0.0])
    present = np.array([True, True, True, False, False])
    for sign in (0.0, 1.0, -1.0):
        free = sign * np.minimum(family.farthest, 12.0)
        for part in (
            *run(VALUES, family, free, padded, present),
            *run(DERIVATIVES, family, free, padded, present),
        ):
            assert np.isfinite(part).all()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "independent"])
def test_derivatives_are_those_of_finite_differences(name):
    family, step = FAMILIES[name], 1e-5
    free = free_values(family)
    moves = step * np.eye(len(free))

    def differences(program, part):
        pairs = [(run(program, family, free + e)[part], run(program, family, free - e)[part]) for e in moves]
        return np.stack([(after - before) / (2 * step) for after, before in pairs], axis=-1)

    found = run(DERIVATIVES, family, free)
    for part in (0, 1):
        first, second, backwards = found[part], found[2 + part], found[4 + part]
        assert np.abs(differences(VALUES, part) - first).max() < DIFFERENCES * max(np.abs(first).max(), 1.0)
        assert np.abs(differences(DERIVATIVES, part) - second).max() < DIFFERENCES * max(
            np.abs(second).max(), 1.0
        )
        assert backwards == pytest.approx(first, abs=ROUNDING)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_static_and_name_what_they_have(name):
    family = FAMILIES[name]
    assert isinstance(family, Family)
    assert hash(family) == hash(family)
    names = family.names(LABELS)
    assert len(names) == len(family.scales) == len(natural(family, family.initial())) >= family.num_params
    assert len(set(names)) == len(names)
    assert family.initial().shape == (family.num_params,) == (len(family.farthest),)
    assert family.name


@pytest.mark.parametrize("name", FAMILIES)
def test_the_first_natural_parameters_determine_the_free_ones(name):
    family = FAMILIES[name]
    J = run(DERIVATIVES, family, free_values(family))[1][: family.num_params]
    assert np.linalg.matrix_rank(J) == family.num_params


def test_families_keep_the_precision_they_are_given():
    with double_precision():
        for family in FAMILIES.values():
            given = jnp.zeros(family.num_params, jnp.float32), jnp.zeros(5, jnp.float32), jnp.ones(5, bool)
            for part in jax.eval_shape(partial(_values, family=family), *given):
                assert part.dtype == jnp.float32


# Starting values


def moments(name: str, family: Family, free: np.ndarray):
    """What residuals with these correlations show, of many groups."""
    if name in OF_LABELS:
        C = correlation(family, free)
        return TIMES, C, np.full(C.shape, 1000.0)
    return TIMES[1:], correlation(family, free)[0, 1:], np.full(4, 1000.0)


@pytest.mark.parametrize("name", sorted((OF_LAGS | OF_LABELS | {"exchangeable"}) - {"toeplitz12"}))
def test_the_start_is_what_the_moments_are_of(name):
    family = FAMILIES[name]
    free = np.abs(free_values(family, spread=0.25)) if name != "nugget" else np.array([1.0, -1.0])
    start = family.start(*moments(name, family, free))
    near = {"exponential": 0.07, "nugget": 0.07, "ma2": 1e-3, "arma12": 1e-2}  # a grid of ranges; iterations
    assert start == pytest.approx(free, abs=near.get(name, 1e-6))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_is_admissible_whatever_the_moments_are(name, rng):
    family = FAMILIES[name]
    size = 5 if name in OF_LABELS else 4
    times = np.arange(5.0) if name in OF_LABELS else np.array([0.5, 1.0, 3.0, 4.0])
    shape = (size, size) if name in OF_LABELS else (size,)
    for products in (
        rng.normal(size=shape),
        np.full(shape, np.nan),
        np.ones(shape),
        -np.ones(shape),
        np.zeros(shape),
    ):
        for counts in (np.full(shape, 3.0), np.full(shape, 1e6), rng.integers(0, 2, shape).astype(float)):
            start = family.start(times, products + products.T, counts)
            assert start.shape == (family.num_params,)
            assert np.linalg.eigvalsh(correlation(family, start))[0] > 0


def test_a_start_bridges_lags_and_labels_that_were_never_observed_together():
    lags = np.array([2.0, 4.0])
    start = Autoregressive(1, 4).start(lags, np.array([0.64, 0.41]), np.array([9.0, 9.0]))
    assert 0.6 < np.tanh(start[0]) < 0.9
    C = 0.8 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    C[0, 4] = C[4, 0] = np.nan
    start = Unstructured(5).start(TIMES, C, np.where(np.isnan(C), 0.0, 50.0))
    found = correlation(Unstructured(5), start)
    assert np.abs(found - C)[np.isfinite(C)].max() < 0.1
    assert 0.2 < found[0, 4] < 0.8


# Toeplitz with zeros


def test_a_toeplitz_matrix_cut_off_may_be_indefinite_and_its_start_is_not():
    family = Toeplitz(1, 4)
    every = np.arange(5)[:, None]
    one = np.ones((5, 1))
    at = Occasions(times=every, levels=0 * every, covariate=one, present=one > 0, stratum=np.zeros(1, int))
    with double_precision():
        logdet = to_host(PRECISIONS(np.array([np.arctanh(0.7)]), at, covariance=ResidualCovariance(family)))[
            2
        ]
    assert np.isnan(logdet).all()
    start = family.start(np.arange(1.0, 5.0), np.array([0.7, 0.5, 0.3, 0.1]), np.full(4, 100.0))
    assert 0.3 < np.tanh(start[0]) < 0.6
    assert np.linalg.eigvalsh(correlation(family, start))[0] > 0


def test_toeplitz_correlations_at_times_with_gaps_may_be_those_of_no_series():
    """Rows at 0, 1, 3 ask less of the correlations at the lags 1 to 3 than rows at 0, 1, 2, 3."""
    rho = np.array([0.9, 0.2, 0.4])
    gaps = Toeplitz(3, 3, complete=False)
    C = correlation(gaps, np.arctanh(rho), [0.0, 1.0, 3.0])
    assert pytest.approx(np.array([[1, 0.9, 0.4], [0.9, 1, 0.2], [0.4, 0.2, 1]]), abs=ROUNDING) == C
    assert np.linalg.eigvalsh(C)[0] > 0
    assert np.linalg.eigvalsh(correlation(gaps, np.arctanh(rho), np.arange(4)))[0] < 0
    moments_of = (np.arange(1.0, 4.0), np.array([0.6, 0.5, 0.4]), np.full(3, 500.0))
    complete = Toeplitz(3, 3)
    starts = gaps.start(*moments_of), complete.start(*moments_of)
    assert natural(gaps, starts[0]) == pytest.approx(natural(complete, starts[1]), abs=ROUNDING)
    assert natural(gaps, starts[0]) == pytest.approx([0.6, 0.5, 0.4], abs=ROUNDING)


# Of one's own


def test_a_custom_family_is_what_its_function_says():
    u = np.array([0.6])
    rho = natural(FAMILIES["custom"], u)[0]
    expected = rho ** np.abs(np.subtract.outer(TIMES, TIMES))
    assert correlation(FAMILIES["custom"], u) == pytest.approx(expected, abs=ROUNDING)
    assert correlation(FAMILIES["custom root"], u) == pytest.approx(expected, abs=ROUNDING)
    assert FAMILIES["custom"].scales == ("logit",)
    fixed = Custom(damped, (("rho", Fixed(0.5)),))
    assert fixed.num_params == 0
    assert correlation(fixed, np.zeros(0), [0.0, 2.0])[0, 1] == 0.25


def test_free_parameters_of_a_custom_family_count_from_its_starts():
    own = (("a", Positive(40.0)), ("b", Correlation(-0.2)), ("c", Unit(0.9)), ("d", Real(7.0)))
    family = Custom(lambda params, times: jnp.eye(len(times)), own, label="own")
    assert natural(family, np.zeros(4)) == pytest.approx([40.0, -0.2, 0.9, 7.0])
    assert family.scales == ("log", "atanh", "logit", "identity")
    assert family.names(()) == ("a", "b", "c", "d")
    assert family.farthest[3] == np.inf


def test_rows_that_pad_have_times_of_their_own_after_all_others():
    seen = []

    def spy(params, times):
        seen.append(times)
        return jnp.eye(len(times))

    family = Custom(spy, ())
    for present in ([True, True, False, False], [False] * 4):
        family.look_up(jnp.zeros((1, 0)), 0, np.array([2.0, 5.0, 0.0, 0.0]), np.array(present))
    assert seen[0].tolist() == [2.0, 5.0, 6.0, 7.0]
    assert (np.diff(seen[1]) > 0).all()


def test_programs_with_functions_of_users_stay_in_their_process():
    family = Custom(damped, (("rho", Unit(0.4)),), label="damped")
    assert repr(family) == repr(Custom(damped, (("rho", Unit(0.4)),), label="damped"))
    assert " at 0x" in repr(family)
    assert family == Custom(damped, (("rho", Unit(0.4)),), label="damped")
    assert family != Custom(damped_root, (("rho", Unit(0.4)),), label="damped")


def test_lengths_without_a_start_get_one_from_the_times():
    family = Custom(damped, (("length", Length()), ("other", Length(3.0)))).at(np.array([0.0, 37.0]))
    assert dict(family.parameters) == {"length": Length(8.0), "other": Length(3.0)}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda params, times: jnp.ones((2, 3)), r"has the shape \(2, 3\) for 4 times, not \(4, 4\)"),
        (lambda params, times: jnp.full((4, 4), jnp.nan), "not finite"),
        (lambda params, times: jnp.eye(4) + 0.1 * jnp.eye(4, k=1), "is not symmetric"),
        (lambda params, times: 2 * jnp.eye(4), "has 2 on its diagonal, not 1; standard deviations"),
        (lambda params, times: jnp.ones((4, 4)), "is not positive definite"),
    ],
)
def test_a_function_that_gives_no_correlations_is_refused(function, message):
    family = Custom(function, (("rho", Unit(0.25)),), label="mine")
    with pytest.raises(
        DesignError, match=r"'mine' at its starting values \{'rho': 0.25\} gives .*" + message
    ):
        check_custom(family, np.arange(4.0))
    check_custom(FAMILIES["custom"], np.arange(4.0))
    check_custom(FAMILIES["custom root"], np.arange(4.0))


# Units


@pytest.mark.parametrize("factor", [1e-6, 0.3, 365.25, 1e9])
def test_the_free_range_does_not_depend_on_the_unit_of_time(factor):
    distances = factor * np.array([1.0, 1.1, 0.9, 2.0, 5.0])
    family = Exponential(unit=time_unit(distances))
    start = family.start(distances, np.exp(-distances / (3 * factor)), np.full(5, 50.0))
    assert abs(start[0]) < 2.5
    assert natural(family, start)[0] == pytest.approx(3 * factor, rel=0.07)
    assert np.log2(family.unit) == np.rint(np.log2(family.unit))


# Bound to data


def test_matrices_of_strata_levels_and_variance_functions_are_those_of_the_definition():
    covariance = ResidualCovariance(Autoregressive(1, 4), levels=2, strata=2, function="power")
    free = np.array([0.5, 0.3, 0.7, -0.2, -0.4, 0.9, 0.25])
    phi, ratio = np.tanh([0.5, -0.2]), np.exp([[0.0, 0.3], [0.25, 0.25 - 0.4]])
    at = Occasions(
        times=np.array([[0.0, 1.0], [2.0, 4.0], [3.0, 0.0]]),
        levels=np.array([[0, 1], [1, 0], [1, 0]]),
        covariate=np.array([[2.0, 3.0], [4.0, 0.5], [1.0, 1.0]]),
        present=np.array([[True, True], [True, True], [True, False]]),
        stratum=np.array([0, 1]),
    )
    with double_precision():
        R, P, logdet = to_host(PRECISIONS(free, at, covariance=covariance))
    for u, (delta, t) in enumerate([(0.7, 3), (0.9, 2)]):
        times = at.times[:t, u]
        sd = ratio[u][at.levels[:t, u]] * at.covariate[:t, u] ** delta
        expected = sd[:, None] * sd * phi[u] ** np.abs(np.subtract.outer(times, times))
        assert R[:t, :t, u] == pytest.approx(expected, rel=1e-12)
        assert P[:t, :t, u] == pytest.approx(np.linalg.inv(expected), rel=1e-9)
        assert logdet[u] == pytest.approx(np.linalg.slogdet(expected)[1], rel=1e-12)
    assert R[2, :, 1].tolist() == [0.0, 0.0, 1.0]
    assert not P[2, :, 1].any()


def test_steps_are_limited_but_for_parameters_without_a_scale():
    own = Custom(lambda params, times: jnp.eye(len(times)), (("a", Real(0.0)), ("b", Positive(1.0))))
    covariance = ResidualCovariance(own, levels=2, strata=2)
    moved = covariance.retract(jnp.zeros(7), 100 * jnp.ones(7))
    assert moved.tolist() == [100.0, 2.0, 2.0, 100.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            lambda params, times: jnp.eye(len(times)) * params["zzz"],
            "the parameter 'zzz'; its parameters are 'rho'",
        ),
        (lambda params, times: np.exp(-np.abs(np.asarray(times))), "written in jax.numpy"),
    ],
)
def test_a_custom_family_that_cannot_be_traced_is_refused(function, said):
    with pytest.raises(DesignError, match=said):
        check_custom(Custom(function, (("rho", Unit(0.4)),), label="own"), np.arange(3.0))
