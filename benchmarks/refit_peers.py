"""Many responses of one design: what every package offers to fit them fastest, behind one interface."""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.peers import Lme4Worker, Problem, available
from benchmarks.timing import version

Array = NDArray[np.float64]
MODULES = {"pyblmm": "blmm"}  # where a package is imported under another name


class Refitted(NamedTuple):
    """The fits of the first responses, as many as were made in time."""

    loglik: Array  # of each
    seconds: float  # for all of them
    converged: float = nan  # share, where the package says so
    singular: float = nan


class Booted(NamedTuple):
    """A parametric bootstrap."""

    replicates: int
    seconds: float
    limits: tuple[float, float] = (nan, nan)  # 95% percentile interval of the coefficient


Refit = Callable[[Array, float], Refitted]  # responses (n, B), seconds after which no other one is begun
Boot = Callable[[int, int, int], Booted]  # replicates, seed, cores


@dataclass(frozen=True)
class Many:
    """A design with one grouping factor, groups of equal size, and the truth of its responses."""

    problem: Problem
    X: Array  # (n, p)
    Z: Array  # (n, q); rows of a group stand together
    groups: int
    beta: Array
    covariance: Array  # (q, q) of the effects
    sigma: float
    coefficient: str  # the one whose interval is compared
    per_round: int  # responses that jaxmixed fits in a round

    @cached_property
    def blocks(self) -> tuple[Array, Array]:
        """X and Z group by group: (m, k, p) and (m, k, q)."""
        return self.X.reshape(self.groups, -1, self.X.shape[1]), self.Z.reshape(
            self.groups, -1, self.Z.shape[1]
        )

    def simulate(self, count: int, seed: int) -> Array:
        """Responses (n, count)."""
        rng = np.random.default_rng(seed)
        Z = self.blocks[1]
        effects = np.linalg.cholesky(self.covariance) @ rng.normal(size=(self.groups, Z.shape[2], count))
        noise = self.sigma * rng.normal(size=(len(self.X), count))
        return (self.X @ self.beta)[:, None] + (Z @ effects).reshape(len(self.X), count) + noise

    def loglik(self, y: Array, relative: Array) -> float:
        """Restricted log-likelihood at a covariance of the effects divided by sigma², from its definition."""
        X, Z = self.blocks
        (m, k, p), n = X.shape, len(self.X)
        V = np.eye(k) + Z @ relative @ Z.swapaxes(1, 2)
        right = np.concatenate([X, y.reshape(m, k, 1)], axis=2)
        products = np.sum(right.swapaxes(1, 2) @ np.linalg.solve(V, right), axis=0)
        information, cross = products[:p, :p], products[:p, p]
        rss = products[p, p] - cross @ np.linalg.solve(information, cross)
        logdets = np.sum(np.linalg.slogdet(V)[1]) + np.linalg.slogdet(information)[1]
        return float(-0.5 * ((n - p) * (1 + np.log(2 * np.pi * rss / (n - p))) + logdets))


def one_thread() -> AbstractContextManager[object]:
    """Keep numpy's linear algebra on one thread: on small matrices, threads cost more than they give."""
    if find_spec("threadpoolctl") is None:
        return nullcontext()
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def one_by_one(fit: Callable[[Array], float]) -> Refit:
    """Fits responses in a loop."""

    def refit(Y: Array, limit: float) -> Refitted:
        rows = np.ascontiguousarray(Y.T)
        logliks = []
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore")
            began = time.perf_counter()
            for y in rows:
                logliks.append(fit(y))
                if time.perf_counter() - began >= limit:
                    break
            seconds = time.perf_counter() - began
        return Refitted(np.array(logliks), seconds)

    return refit


def jaxmixed_fit(many: Many) -> object:
    import jaxmixed as jm

    return jm.mixed(many.problem.formula, many.problem.data, method="reml")


def jaxmixed(many: Many, devices: int | None = None) -> Refit:
    fit = jaxmixed_fit(many)

    def refit(Y: Array, limit: float) -> Refitted:
        began = time.perf_counter()
        fits = fit.refit_many(Y, devices=devices)
        loglik = np.asarray(fits.llf)
        seconds = time.perf_counter() - began
        return Refitted(loglik, seconds, float(np.mean(fits.converged)), float(np.mean(fits.is_singular)))

    return refit


def jaxmixed_loop(many: Many) -> Refit:
    import jaxmixed as jm

    problem, response = many.problem, many.problem.fixed.split("~")[0].strip()
    return one_by_one(
        lambda y: float(jm.mixed(problem.formula, problem.data.assign(**{response: y}), method="reml").llf)
    )


def _lme4(many: Many, command: str) -> Refit:
    """Times are R's own; log-likelihoods are evaluated here at R's theta."""
    worker, q = Lme4Worker(many.problem), many.Z.shape[1]
    columns, rows = np.triu_indices(q)

    def relative(theta: Array) -> Array:
        factor = np.zeros((q, q))
        factor[rows, columns] = theta  # column by column, below the diagonal
        return factor @ factor.T

    def refit(Y: Array, limit: float) -> Refitted:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "responses"
            path.write_bytes(Y[:, : int(min(Y.shape[1], 1 + 1000 * limit))].tobytes(order="F"))
            worker.ask("responses", str(path), str(len(Y)))
        seconds, count, *theta = worker.ask(command, "1", str(limit))
        thetas = np.array(theta, dtype=float).reshape(int(count), -1)
        logliks = [many.loglik(y, relative(theta)) for y, theta in zip(Y.T, thetas, strict=False)]
        return Refitted(np.array(logliks), float(seconds))

    return refit


def lme4_refit(many: Many) -> Refit:
    return _lme4(many, "refit")


def lme4_bare(many: Many) -> Refit:
    return _lme4(many, "bare")


def lme4_lmer(many: Many) -> Refit:
    return _lme4(many, "fresh")


def _polars(problem: Problem) -> object:
    import polars as pl

    return pl.from_pandas(problem.data.astype(dict.fromkeys(problem.factors, str)))


def lme_python(many: Many) -> Refit:
    import lme_python as package

    formula, data = many.problem.formula, _polars(many.problem)
    prepared = package.prepare_lmer(formula, data)
    start = package.FitControl(start=list(prepared.fit(reml=True).theta))
    return one_by_one(lambda y: prepared.fit(y.tolist(), True, control=start).log_likelihood)


def mixedlm(many: Many) -> Refit:
    import mixedlm as package
    from mixedlm.estimation.reml import LMMOptimizer

    fitted = package.lmer(many.problem.formula, many.problem.data)
    prepared = LMMOptimizer(fitted.matrices, REML=True, use_rust=True)
    return one_by_one(
        lambda y: -0.5 * prepared.with_response(y).optimize(start=fitted.theta, method="auto").deviance
    )


def mixedlm_rs(many: Many) -> Refit:
    import mixedlm_rs as package

    data, random = many.problem.statsmodels()
    model = package.MixedLM.from_formula(many.problem.fixed, data, **random)
    return one_by_one(lambda y: model.with_endog(y).fit().llf)


def statsmodels(many: Many) -> Refit:
    from statsmodels.regression.mixed_linear_model import MixedLM

    data, random = many.problem.statsmodels()
    model = MixedLM.from_formula(many.problem.fixed, data, **random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = model.fit(reml=True).params_object

    def fit(y: Array) -> float:
        again = MixedLM(y, model.exog, groups=model.groups, exog_re=model.exog_re)
        return float(again.fit(reml=True, start_params=start).llf)

    return one_by_one(fit)


def pyblmm(many: Many) -> Refit:
    """All responses in one call of its Fisher scoring; log-likelihoods are those of its estimates."""
    from blmm.src.est3d import pSFS3D
    from blmm.src.npMatrix3d import flattenZtZ

    n, (m, _, q) = len(many.X), many.blocks[1].shape
    wide = np.zeros((n, m, q))
    wide[np.arange(n), np.repeat(np.arange(m), n // m)] = many.Z
    Z, X, p = wide.reshape(n, m * q), many.X, many.X.shape[1]
    XtX, XtZ, ZtZ = (X.T @ X)[None], (X.T @ Z)[None], flattenZtZ((Z.T @ Z)[None], m, q)
    columns, rows = np.triu_indices(q)
    rate = 100.0  # responses a second, until it is known

    def fit(Y: Array) -> Array:
        XtY, ZtY = (X.T @ Y).T[:, :, None], (Z.T @ Y).T[:, :, None]
        YtY = np.sum(Y * Y, axis=0)[:, None, None]
        ZtX, YtZ, YtX = (product.transpose(0, 2, 1) for product in (XtZ, ZtY, XtY))
        products = (XtX, XtY, ZtX, ZtY, ZtZ, XtZ, YtZ, YtY, YtX)
        return pSFS3D(*products, np.array([m]), np.array([q]), 1e-6, np.array([n]), reml=True)[:, :, 0]

    def refit(Y: Array, limit: float) -> Refitted:
        nonlocal rate
        Y = Y[:, : max(50, int(rate * limit))]
        began = time.perf_counter()
        with warnings.catch_warnings(), one_thread():
            warnings.simplefilter("ignore")
            found = fit(Y)
        seconds = time.perf_counter() - began
        rate = Y.shape[1] / seconds
        relative = np.zeros((Y.shape[1], q, q))
        relative[:, rows, columns] = relative[:, columns, rows] = found[:, p + 1 :]
        return Refitted(np.array([many.loglik(y, D) for y, D in zip(Y.T, relative, strict=True)]), seconds)

    return refit


@dataclass(frozen=True)
class RefitPeer:
    """A way to refit: the package that it needs, what is called, and how to prepare it."""

    package: str
    call: str
    prepare: Callable[[Many], Refit]


PEERS: tuple[RefitPeer, ...] = (
    RefitPeer("jaxmixed", "fit.refit_many(Y)", jaxmixed),
    RefitPeer("jaxmixed", "mixed() in a loop", jaxmixed_loop),
    RefitPeer("lme4", "refit() in a loop", lme4_refit),
    RefitPeer("lme4", "refit(), convergence unchecked", lme4_bare),
    RefitPeer("lme4", "lmer(), convergence unchecked", lme4_lmer),
    RefitPeer("lme-python", "prepare_lmer().fit(y), with a start", lme_python),
    RefitPeer("mixedlm", "optimizer.with_response(y).optimize(start)", mixedlm),
    RefitPeer("mixedlm-rs", "model.with_endog(y).fit()", mixedlm_rs),
    RefitPeer("pyblmm", "pSFS3D(), all at once", pyblmm),
    RefitPeer("statsmodels", "MixedLM().fit(start)", statsmodels),
)


def found_here() -> dict[str, str]:
    """Name and version of every package of `PEERS` that is installed."""
    found = available()
    if find_spec(MODULES["pyblmm"]) is not None:
        found["pyblmm"] = version("pyblmm") or "from source"
    return found


# ---------------------------------------------------------------------------------------------- the bootstrap


def limits_of(table: object, name: str) -> tuple[float, float]:
    """Limits of a coefficient in a table of intervals, or NaN where it has no such row."""
    try:
        low, high = table.loc[name, ["conf_low", "conf_high"]].to_numpy(dtype=float).ravel()
    except (AttributeError, KeyError, TypeError, ValueError):
        return nan, nan
    return float(low), float(high)


def boot_jaxmixed(many: Many) -> Boot:
    fit = jaxmixed_fit(many)

    def boot(replicates: int, seed: int, cores: int) -> Booted:
        began = time.perf_counter()
        table = fit.bootstrap(replicates, seed=seed).conf_int()
        seconds = time.perf_counter() - began
        return Booted(replicates, seconds, limits_of(table, many.coefficient))

    return boot


def boot_lme4(many: Many) -> Boot:
    worker = Lme4Worker(many.problem)

    def boot(replicates: int, seed: int, cores: int) -> Booted:
        answer = worker.ask("boot", str(replicates), str(seed), str(cores), many.coefficient)
        seconds, low, high = map(float, answer)
        return Booted(replicates, seconds, (low, high))

    return boot


def boot_lme_python(many: Many) -> Boot:
    import lme_python as package

    formula, data = many.problem.formula, _polars(many.problem)
    fit = package.lmer(formula, data)
    at = fit.fixed_names.index(many.coefficient)

    def boot(replicates: int, seed: int, cores: int) -> Booted:
        began = time.perf_counter()
        table = fit.boot(formula, data, nsim=replicates, seed=seed, n_jobs=cores).confint()
        seconds = time.perf_counter() - began
        return Booted(replicates, seconds, (table.lower[at], table.upper[at]))

    return boot


def boot_mixedlm(many: Many) -> Boot:
    import mixedlm as package

    fit = package.lmer(many.problem.formula, many.problem.data)

    def boot(replicates: int, seed: int, cores: int) -> Booted:
        began = time.perf_counter()
        table = package.bootMer(fit, nsim=replicates, seed=seed, n_jobs=cores).ci()
        seconds = time.perf_counter() - began
        return Booted(replicates, seconds, table[many.coefficient])

    return boot


@dataclass(frozen=True)
class BootPeer:
    """A bootstrap: the package, what is called, how to prepare it, how many replicates it is asked for."""

    package: str
    call: str
    prepare: Callable[[Many], Boot]
    replicates: int
    cores: int = 1


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
BOOT_PEERS: tuple[BootPeer, ...] = (
    BootPeer("jaxmixed", "fit.bootstrap(n).conf_int()", boot_jaxmixed, 10_000, CORES),
    BootPeer("lme4", "bootMer()", boot_lme4, 150),
    BootPeer("lme4", "bootMer(parallel = 'multicore')", boot_lme4, 300, CORES),
    BootPeer("lme-python", "fit.boot()", boot_lme_python, 2_000),
    BootPeer("lme-python", "fit.boot(n_jobs)", boot_lme_python, 4_000, CORES),
    BootPeer("mixedlm", "bootMer()", boot_mixedlm, 1_000),
    BootPeer("mixedlm", "bootMer(n_jobs)", boot_mixedlm, 2_000, CORES),
)


# ------------------------------------------------------------------------------------------------ the designs


def sleepstudy() -> Many:
    """The sleep study, responses drawn from its REML fit: 18 groups with the same ten rows each."""
    import jaxmixed as jm

    data = pd.DataFrame(jm.datasets.load("sleepstudy"))[["Reaction", "Days", "Subject"]]
    data = data.astype({"Subject": str})
    X = np.column_stack([np.ones(len(data)), data["Days"]])
    covariance = np.array([[612.0897, 9.6055], [9.6055, 35.0717]])
    problem = Problem("sleepstudy", data, "Reaction ~ Days", "Days", "Subject")
    beta = np.array([251.4051, 10.4673])
    return Many(problem, X, X, 18, beta, covariance, 25.5918, "Days", 30_000)


def covariate() -> Many:
    """50 groups of 20 rows with continuous covariates: no two groups have a row in common."""
    rng = np.random.default_rng(20)
    group = np.repeat(np.arange(50), 20)
    x = rng.normal(size=1000) + 0.5 * rng.normal(size=50)[group]
    z = rng.uniform(-1, 1, 1000)
    X = np.column_stack([np.ones(1000), x, z])
    covariance = np.array([[0.5, 0.12], [0.12, 0.2]])
    beta = np.array([1.0, 0.5, -0.3])
    data = pd.DataFrame({"y": np.zeros(1000), "x": x, "z": z, "g": [f"g{i:02d}" for i in group]})
    many = Many(
        Problem("covariate", data, "y ~ x + z", "x", "g"), X, X[:, :2], 50, beta, covariance, 1.0, "x", 5_000
    )
    data["y"] = many.simulate(1, 21)[:, 0]
    return many
