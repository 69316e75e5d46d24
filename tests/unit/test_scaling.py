"""The same numbers from one device, several devices and several processes; interrupts of a real process."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxmixed.schedule import assemble
from tests.support.processes import ends, free_port, start
from tests.support.scaling import MODELS, NAMES, fits

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and processes of POSIX")

LAST_BITS = 1e-10
"""Relative: a device's program is compiled for itself, and blocks of other sizes sum in another order."""

FOUR_DEVICES = "--xla_force_host_platform_device_count=4"
TWO_DEVICES = "--xla_force_host_platform_device_count=2"


def assert_same(found: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    for name in NAMES:
        np.testing.assert_allclose(found[name], other[name], rtol=LAST_BITS, atol=LAST_BITS, err_msg=name)
        assert found[name].dtype == other[name].dtype


@pytest.mark.slow
def test_every_crew_of_devices_finds_the_same(tmp_path: Path) -> None:
    file = tmp_path / "found.npz"
    printed = ends(start("tests.support.scaling", "devices", file, XLA_FLAGS=FOUR_DEVICES))
    used = "{'one': [0], 'two': [0, 1], 'all': [0, 1, 2, 3], 'chosen': [2, 3], 'mesh': [0, 1, 2, 3]}"
    assert printed == f"{used} [0, 1, 2, 3]\n"  # and every device has run programs of its own
    alone, _ = fits(assemble(devices=1))
    with np.load(file) as found:
        for crew in ("one", "two", "all", "chosen", "mesh"):
            assert_same({name: found[f"{crew}.{name}"] for name in NAMES}, alone)


@pytest.mark.slow
def test_two_processes_find_what_one_does_and_both_have_all_of_it(tmp_path: Path) -> None:
    port, files = free_port(), [tmp_path / f"found{number}.npz" for number in range(2)]
    both = [
        start("tests.support.scaling", "process", files[number], port, number, XLA_FLAGS=TWO_DEVICES)
        for number in range(2)
    ]
    printed = [ends(process) for process in both]
    assert [text.splitlines()[-1] for text in printed] == ["(0, 1) 4", "(2, 3) 4"]
    alone, rows = fits(assemble(devices=1))
    assert len(rows) == MODELS
    for file in files:
        with np.load(file) as found:
            assert found["deviance"].dtype == np.float64
            assert_same(found, alone)


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_too(tmp_path: Path) -> None:
    port = free_port()
    both = [
        start("tests.support.scaling", "process", tmp_path, port, number, "fail", XLA_FLAGS=TWO_DEVICES)
        for number in range(2)
    ]
    # Gloo writes lines of its own when it pleases.
    lines = [[line for line in ends(process).splitlines() if "[Gloo]" not in line] for process in both]
    assert [own[-1] for own in lines] == [
        "JaxMixedError another process of the mesh has failed, and reports why",
        "ZeroDivisionError in process 1",
    ]


@pytest.mark.slow
def test_ctrl_c_ends_a_process_with_what_it_has() -> None:
    process = start("tests.support.scaling", "interrupt")
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline().startswith("done ")
    process.send_signal(signal.SIGINT)
    # Not `communicate`, which reads past the reader above and so loses the lines that it holds already.
    *done, last = process.stdout.read().splitlines()
    ends(process)
    words = last.split()
    assert words[:2] == ["kept", "True"]
    assert 3 <= int(words[2]) < 100  # of 1000, which take minutes
    assert int(words[2]) == 3 + len(done)
    assert f"interrupted: {words[2]} of 1,000 models" in last
