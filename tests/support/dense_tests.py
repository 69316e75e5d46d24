"""Satterthwaite's and Kenward and Roger's methods by their definitions, through n x n matrices.

Nothing is shared with the library but the data and the estimates of the fit.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

import jaxmixed as jm


class Dense(Protocol):
    """What the methods see: V, its derivatives in some parameters, and its second derivatives, if any."""

    @property
    def X(self) -> np.ndarray: ...
    @property
    def y(self) -> np.ndarray: ...
    @property
    def V(self) -> np.ndarray: ...
    @property
    def parts(self) -> list[np.ndarray]: ...
    @property
    def curvatures(self) -> dict[tuple[int, int], np.ndarray]: ...


class DenseModel(NamedTuple):
    """The fitted model: V is the sum of `parameters` times `parts`, the residual variance last."""

    X: np.ndarray
    y: np.ndarray
    parts: list[np.ndarray]
    parameters: np.ndarray
    curvatures: dict[tuple[int, int], np.ndarray]

    @property
    def V(self) -> np.ndarray:
        return sum(own * part for own, part in zip(self.parameters, self.parts, strict=True))


def dense_model(fit: jm.MixedResults) -> DenseModel:
    """In the metric of variances and covariances; effects of variance zero are left out."""
    frame, found = fit.frame, fit.estimates
    kept = ~np.isnan(found.beta)
    offset = 0.0 if frame.offset is None else frame.offset
    parts, parameters = [], []
    for term in found.terms:
        group = frame.groups[term.frame_index]
        Z, same = np.asarray(group.Z), group.codes[:, None] == group.codes[None, :]
        q, sd = Z.shape[1], np.sqrt(np.diagonal(term.cov))
        shapes = {"exchangeable": [np.eye(q), np.ones((q, q)) - np.eye(q)], "identity": [np.eye(q)]}
        if term.structure in shapes and q > 1:
            changes = [(D, term.cov[0, int(number)]) for number, D in enumerate(shapes[term.structure])]
        else:
            pairs = [(i, j) for j in range(q) for i in range(j, q) if sd[i] > 0 and sd[j] > 0]
            if term.structure == "independent":
                pairs = [(i, j) for i, j in pairs if i == j]
            changes = []
            for i, j in pairs:
                D = np.zeros((q, q))
                D[i, j] = D[j, i] = 1.0
                changes.append((D, term.cov[i, j]))
        for D, value in changes:
            parts.append(same * (Z @ D @ Z.T))
            parameters.append(value)
    weights = np.ones(len(frame.y)) if frame.weights is None else frame.weights
    parts.append(np.diag(1 / weights))
    parameters.append(found.sigma**2)
    return DenseModel(np.asarray(frame.X)[:, kept], frame.y - offset, parts, np.array(parameters), {})


class Pieces(NamedTuple):
    """What both methods are made of."""

    phi: np.ndarray
    solved: list[np.ndarray]
    P: list[np.ndarray]
    projection: np.ndarray


def _pieces(model: Dense) -> Pieces:
    inverse = np.linalg.inv(model.V)
    phi = np.linalg.inv(model.X.T @ inverse @ model.X)
    projection = inverse - inverse @ model.X @ phi @ model.X.T @ inverse
    solved = [inverse @ part for part in model.parts]
    P = [-model.X.T @ own @ inverse @ model.X for own in solved]
    return Pieces(phi, solved, P, projection)


def satterthwaite_df(model: Dense, L: np.ndarray, method: str) -> np.ndarray:
    """Degrees of freedom of each row of L, from the observed information."""
    phi, solved, P, projection = _pieces(model)
    size, inverse = len(P), np.linalg.inv(model.V)
    hessian = np.empty((size, size))
    for a in range(size):
        for b in range(size):
            Pa, Pb = projection @ model.parts[a], projection @ model.parts[b]
            trace = np.trace(Pa @ Pb) if method == "reml" else np.trace(solved[a] @ solved[b])
            hessian[a, b] = -trace + 2 * model.y @ Pa @ Pb @ projection @ model.y
            bend = model.curvatures.get((a, b))
            if bend is not None:
                whole = projection if method == "reml" else inverse
                hessian[a, b] += np.sum(whole * bend) - model.y @ projection @ bend @ projection @ model.y
    covariance = 2 * np.linalg.inv(hessian)
    found = []
    for row in L:
        gradient = np.array([-row @ phi @ own @ phi @ row for own in P])
        found.append(2 * (row @ phi @ row) ** 2 / (gradient @ covariance @ gradient))
    return np.array(found)


class KenwardRogerTest(NamedTuple):
    """The adjusted covariance, and the scaled F test of ``L beta = 0``."""

    adjusted: np.ndarray
    statistic: float
    df: float


def kenward_roger_test(model: Dense, L: np.ndarray, beta: np.ndarray) -> KenwardRogerTest:
    """Kenward & Roger (1997), sections 2 and 3; the information is the expected one of REML."""
    phi, solved, P, projection = _pieces(model)
    inverse, size, q = np.linalg.inv(model.V), len(P), len(L)
    products = [[projection @ a @ projection @ b for b in model.parts] for a in model.parts]
    W = np.linalg.inv(0.5 * np.array([[np.trace(own) for own in row] for row in products]))
    inner = np.zeros_like(phi)
    for a in range(size):
        for b in range(size):
            Q = model.X.T @ solved[a] @ solved[b] @ inverse @ model.X
            R = model.curvatures.get((a, b))
            bend = 0.0 if R is None else model.X.T @ inverse @ R @ inverse @ model.X
            inner += W[a, b] * (Q - P[a] @ phi @ P[b] - bend / 4)
    adjusted = phi + 2 * phi @ inner @ phi
    theta = L.T @ np.linalg.inv(L @ phi @ L.T) @ L
    M = [theta @ phi @ own @ phi for own in P]
    A1 = sum(W[a, b] * np.trace(M[a]) * np.trace(M[b]) for a in range(size) for b in range(size))
    A2 = sum(W[a, b] * np.trace(M[a] @ M[b]) for a in range(size) for b in range(size))
    B = (A1 + 6 * A2) / (2 * q)
    g = ((q + 1) * A1 - (q + 4) * A2) / ((q + 2) * A2)
    c1, c2, c3 = (value / (3 * q + 2 * (1 - g)) for value in (g, q - g, q + 2 - g))
    expectation = 1 / (1 - A2 / q)
    variance = 2 / q * (1 + c1 * B) / ((1 - c2 * B) ** 2 * (1 - c3 * B))
    rho = variance / (2 * expectation**2)
    m = 4 + (q + 2) / (q * rho - 1)
    scale = m / (expectation * (m - 2))
    value = L @ beta
    statistic = scale * value @ np.linalg.solve(L @ adjusted @ L.T, value) / q
    return KenwardRogerTest(adjusted, float(statistic), float(m))
