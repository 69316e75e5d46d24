"""Which known relationship matrices say the same: each counts up to a factor, which the variance takes up."""

import numpy as np

PROPORTIONAL = 1e-10
"""Relationships that differ by less than this share of their mean diagonal are the same."""


def of_unit_mean(A: np.ndarray) -> np.ndarray:
    """A relationship matrix (m, m) divided by the mean of its diagonal."""
    return np.asarray(A / np.mean(np.diagonal(A)))


def alike(A: np.ndarray, B: np.ndarray) -> bool:
    """Whether two relationship matrices (m, m) are proportional.

    Examples
    --------
    >>> alike(2 * np.eye(3), np.eye(3)), alike(np.diag([1.0, 2.0]), np.eye(2))
    (True, False)
    """
    return bool(np.abs(of_unit_mean(A) - of_unit_mean(B)).max() <= PROPORTIONAL)


def is_plain(A: np.ndarray) -> bool:
    """Whether the levels are unrelated and alike: A is a multiple of the identity.

    Examples
    --------
    >>> is_plain(2 * np.eye(3)), is_plain(np.ones((3, 3)))
    (True, False)
    """
    return alike(A, np.eye(len(A)))
