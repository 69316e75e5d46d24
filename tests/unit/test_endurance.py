"""A thousand fits in one process: no memory is lost and nothing compiles again."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from jaxmixed import search
from tests.support.fits import quietly
from tests.support.simulated import students, use_everything

STATUS = Path("/proc/self/status")
ALLOWED_GROWTH = 50.0


def resident_megabytes() -> float:
    gc.collect()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return float(line.split()[1]) / 1024


def fit_all(seed: int) -> None:
    """Four models of one data set, looked at in every way."""
    data = students(seed, groups=32, slope=0.7)
    data["h"] = data["g"] // 4
    for formula in ("y ~ x + (1 | g)", "y ~ x + (x | g)", "y ~ x + (x || g)", "y ~ x + (1 | h/g)"):
        fit = quietly(formula, data, method="ml" if seed % 2 else "reml")
        if seed % 5 == 0:
            use_everything(fit)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not STATUS.exists(), reason="needs the memory accounting of Linux")
def test_a_thousand_fits_neither_leak_nor_compile():
    for seed in range(10):
        fit_all(seed)
    before, compiled = resident_megabytes(), search.PROGRAM.compiled
    kept = len(search.PROGRAM._executables)
    for seed in range(10, 260):
        fit_all(seed)
    assert search.PROGRAM.compiled == compiled
    assert len(search.PROGRAM._executables) == kept
    assert resident_megabytes() - before < ALLOWED_GROWTH


def test_a_second_data_set_of_similar_shape_does_not_compile_again():
    rng = np.random.default_rng(0)
    quietly("y ~ x + (x | g)", students(0, groups=30, slope=0.7))
    compiled, kept = search.PROGRAM.compiled, len(search.PROGRAM._executables)
    for seed, groups in enumerate((29, 31, 32)):
        data = students(seed, groups=groups, slope=0.7)
        quietly("y ~ x + (x | g)", data.sample(frac=0.9, random_state=rng.integers(100)))
    assert search.PROGRAM.compiled == compiled
    assert len(search.PROGRAM._executables) == kept
