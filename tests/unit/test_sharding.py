"""The same numbers from arrays that are spread over devices, and what the devices exchange for them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.closeness import assert_close_to_the_largest
from tests.support.processes import ends, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="several CPU devices"),
]

ROUNDING = 1e-11
"""Relative to the largest element: parts are summed in another order."""

RAW_SUMS = 1e-9
"""The same where the sums are of the data as they are: their squares hold fewer digits of what is left."""


def spread(name: str, file: Path, tolerance: float = ROUNDING) -> dict[str, Any]:
    """Run a program over four devices and on one, compare, and say how the work was divided."""
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_ENABLE_X64": "1"}
    report = json.loads(ends(start("tests.support.sharding", name, file, **devices)))
    with np.load(file) as found:
        own = [key for key in found if key.startswith("spread.")]
        assert len(own) > 1
        for key in own:
            expected = found[key.replace("spread", "alone")]
            assert np.isfinite(expected).all()
            assert_close_to_the_largest(found[key], expected, tolerance)
    return dict(report)


def only_sums(report: dict[str, Any]) -> bool:
    """Whether the devices exchange sums alone, no elements of each other's."""
    return all(exchange.startswith("all-reduce ") for exchange in report["exchanges"])


@pytest.mark.parametrize(
    ("name", "apart"),
    [
        ("deviance", [False, False, True, True, True]),
        ("density", [False, False, True]),
        ("fit", [False, False, False, False, False, True]),
    ],
)
def test_rows_stay_where_they_are_and_only_sums_are_exchanged(
    name: str, apart: list[bool], tmp_path: Path
) -> None:
    report = spread(name, tmp_path / "found.npz")
    assert report["exchanges"]
    assert only_sums(report)
    assert not report["has all rows"]
    assert report["apart"] == apart  # derivatives along rows are where the rows are


def test_the_finest_groups_stay_where_they_are_once_summed(tmp_path: Path) -> None:
    report = spread("groups", tmp_path / "found.npz")
    assert report["exchanges"]
    assert only_sums(report)


def test_models_that_are_spread_have_nothing_to_exchange(tmp_path: Path) -> None:
    report = spread("models", tmp_path / "found.npz")
    assert report["exchanges"] == []
    assert report["apart"] == [True, True]


def test_raw_sums_of_rows_add_up_within_shard_map(tmp_path: Path) -> None:
    report = spread("sums", tmp_path / "found.npz", RAW_SUMS)
    assert len(report["exchanges"]) == 1  # all statistics at once, in the derivatives too
    assert only_sums(report)
    assert report["apart"] == [False, False, True]
