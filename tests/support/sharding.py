"""The likelihood and the fit over several devices: what a process with four of them finds.

python -m tests.support.sharding PROGRAM FILE

writes what the program finds over the devices and on one of them, and prints how the work was divided.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmixed.likelihood import deviance, marginal_loglik
from jaxmixed.solution import solve
from jaxmixed.statistics import SufficientStatistics, summarise

ROWS, FINE, COARSE = 8 * 52, 24, 4
"""The number of rows is no other size of the programs."""

THETA = np.array([0.8, 0.3, 0.5, 0.9])
SPREAD = PartitionSpec("parts")
EXCHANGES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")

Rows = dict[str, Any]


def draw() -> Rows:
    """Rows of two nested factors, in no order."""
    rng = np.random.default_rng(0)
    fine = rng.permutation(np.arange(ROWS) % FINE)
    coarse = (np.arange(FINE) % COARSE)[fine]
    X = np.column_stack([np.ones(ROWS), rng.normal(size=ROWS)])
    effects = rng.normal(size=(FINE, 2))[fine] + rng.normal(size=(COARSE, 1))[coarse]
    y = X @ [5.0, -0.5] + np.sum(X * effects, axis=1) + rng.normal(size=ROWS)
    weights = rng.uniform(0.5, 2, ROWS)
    return {"y": y, "X": X, "Z": (X, np.ones((ROWS, 1))), "groups": (fine, coarse), "weights": weights}


def of_rows(theta: jax.Array, rows: Rows) -> Any:
    """Deviance, and its derivatives along theta, y, X and the weights."""

    def value(theta: jax.Array, **changed: jax.Array) -> jax.Array:
        return deviance(theta, summarise(**{**rows, **changed}, num_groups=(FINE, COARSE)))

    traced = {name: rows[name] for name in ("y", "X", "weights")}
    along, slopes = jax.value_and_grad(lambda both: value(both[0], **both[1]))((theta, traced))
    return along, slopes


def density_of_rows(theta: jax.Array, rows: Rows) -> Any:
    """The marginal density, and its derivatives along sigma and y."""

    def value(sigma: jax.Array, y: jax.Array) -> jax.Array:
        G, beta = (jnp.eye(2), jnp.eye(1)), theta[:2]
        return marginal_loglik(**{**rows, "y": y}, beta=beta, G=G, sigma=sigma, num_groups=(FINE, COARSE))

    return jax.value_and_grad(value, argnums=(0, 1))(theta[2], rows["y"])


def fit_of_rows(theta: jax.Array, rows: Rows) -> Any:
    """Estimates with one random effect a group, and the derivative of a fixed effect along y."""
    del theta

    def slope(y: jax.Array) -> Any:
        (_, Z), (fine, _) = rows["Z"], rows["groups"]
        found = solve(summarise(y, rows["X"], Z, fine, num_groups=FINE, weights=rows["weights"]))
        return found.beta[1], (found.beta, found.theta, found.sigma, found.loglik)

    return jax.value_and_grad(slope, has_aux=True)(rows["y"])


def sums_of_rows(theta: jax.Array, rows: Rows, mesh: Mesh | None = None) -> Any:
    """Deviance and its derivatives; with a mesh, of raw sums that each device makes of its own rows."""

    def own(y: jax.Array, X: jax.Array, codes: jax.Array, weights: jax.Array) -> Any:
        plain = summarise(y, X, X, codes, num_groups=FINE, weights=weights, standardise=False)
        return plain.levels[0].root, plain.levels[0].cross, plain.total, plain.nobs, plain.sum_log_weights

    def added(*parts: jax.Array) -> Any:
        return jax.lax.psum(own(*parts), "parts")

    def value(theta: jax.Array, y: jax.Array) -> jax.Array:
        X, codes, weights = rows["X"], rows["groups"][0], rows["weights"]
        if mesh is None:
            return deviance(theta[:3], summarise(y, X, X, codes, num_groups=FINE, weights=weights))
        sums = jax.shard_map(added, mesh=mesh, in_specs=(SPREAD,) * 4, out_specs=PartitionSpec())
        root, cross, total, nobs, sum_log_weights = sums(y, X, codes, weights)
        empty = summarise(y[:0], X[:0], X[:0], codes[:0], num_groups=FINE, standardise=False)
        levels = (replace(empty.levels[0], root=root, cross=cross),)
        stats = replace(empty, levels=levels, total=total, nobs=nobs, sum_log_weights=sum_log_weights)
        return deviance(theta[:3], stats)

    return jax.value_and_grad(value, argnums=(0, 1))(theta, rows["y"])


def of_statistics(theta: jax.Array, stats: SufficientStatistics) -> Any:
    """Deviance and its derivatives along theta, given the statistics."""
    return jax.value_and_grad(deviance)(theta, stats)


def groups_apart(stats: SufficientStatistics, mesh: Mesh) -> SufficientStatistics:
    """The finest groups, the last axis of their statistics, spread over the devices."""

    def spread(leaf: jax.Array) -> jax.Array:
        axes = PartitionSpec(*[None] * (leaf.ndim - 1), "parts")
        return jax.device_put(leaf, NamedSharding(mesh, axes))

    finest, *coarser = stats.levels
    return replace(stats, levels=(jax.tree.map(spread, finest), *coarser))


def exchanges(text: str) -> list[str]:
    """Kind and shape of what the devices of a compiled program exchange."""
    found = re.findall(rf"= (.+?) ({'|'.join(EXCHANGES)})(?:-start)?\(", text)
    return sorted({f"{kind} {shape}" for shape, kind in found})


def run(name: str) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], Callable[..., Any]]:
    """A program with its arguments, spread and not, and the program that finds the same on one device."""
    mesh, rows = Mesh(np.array(jax.devices()), ("parts",)), draw()
    apart = NamedSharding(mesh, SPREAD)
    if name in ("groups", "models"):
        stats = jax.jit(lambda rows: summarise(**rows, num_groups=(FINE, COARSE)))(rows)
        if name == "groups":
            return of_statistics, (THETA, groups_apart(stats, mesh)), (THETA, stats), of_statistics
        thetas = np.stack([THETA * (1 + 0.1 * number) for number in range(8)])
        many = jax.vmap(of_statistics, in_axes=(0, None))
        return many, (jax.device_put(thetas, apart), stats), (thetas, stats), many
    spread = jax.device_put(rows, apart)
    if name == "sums":
        return (
            lambda theta, rows: sums_of_rows(theta, rows, mesh),
            (THETA, spread),
            (THETA, rows),
            sums_of_rows,
        )
    of = {"deviance": of_rows, "density": density_of_rows, "fit": fit_of_rows}[name]
    return of, (THETA, spread), (THETA, rows), of


def main(name: str, file: Path) -> None:
    """Run a program both ways."""
    options = {"xla_backend_optimization_level": 0}  # half the time to compile
    program, spread, whole, alone = run(name)
    compiled = jax.jit(program, compiler_options=options).lower(*spread).compile()
    found = jax.tree.leaves(compiled(*spread))
    expected = jax.tree.leaves(jax.jit(alone, compiler_options=options)(*whole))
    pairs = {"spread": found, "alone": expected}
    np.savez(file, **{f"{kind}.{i}": leaf for kind, own in pairs.items() for i, leaf in enumerate(own)})
    text = compiled.as_text()
    report = {
        "exchanges": exchanges(text),
        "has all rows": re.search(rf"[\[,]{ROWS}[,\]]", text) is not None,
        "apart": [not leaf.sharding.is_fully_replicated for leaf in found],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
