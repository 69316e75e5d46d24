"""Many models in two processes of one mesh: each gets all results, and they are those of one process."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

import jaxmixed as jm
from tests.support.processes import LIMIT, ROOT, environment

CODE = """
import json, sys, warnings
import jax
import numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:{port}", 2, {process})
import jaxmixed as jm
warnings.simplefilter("ignore")
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("models",))
data = jm.datasets.load("sleepstudy")
Y = jm.mixed("Reaction ~ Days + (1 | Subject)", data).simulate(20, seed=1).to_numpy(copy=True)
Y[:, 3], Y[4, 5], Y[10:, 17] = 1.0, np.nan, np.nan
many = jm.fit_many("~ Days + (1 | Subject)", data, Y, mesh=mesh, block={block})
print(json.dumps({{"llf": many.llf.tolist(), "bse": many.bse["Days"].tolist(), "reason": many.reason.tolist(),
    "sd": many.varcorr["std_error"].tolist(), "nobs": many.nobs.tolist(), "devices": jax.device_count()}}))
"""


def two_processes(block: int) -> list[dict]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CODE.format(port=port, process=process, block=block)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        found = [process.communicate(timeout=LIMIT) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], found
    return [json.loads(output.splitlines()[-1]) for output, _ in found]


@pytest.mark.slow
@pytest.mark.parametrize("block", [3, 100], ids=["shared out", "all in one block"])
def test_two_processes_get_all_results_and_those_of_one(block):
    data = jm.datasets.load("sleepstudy")
    Y = jm.mixed("Reaction ~ Days + (1 | Subject)", data).simulate(20, seed=1).to_numpy(copy=True)
    Y[:, 3], Y[4, 5], Y[10:, 17] = 1.0, np.nan, np.nan
    with pytest.warns(jm.ConvergenceWarning):
        one = jm.fit_many("~ Days + (1 | Subject)", data, Y)
    first, second = two_processes(block)
    assert first == second or json.dumps(first) == json.dumps(second)
    assert first["devices"] == 2
    np.testing.assert_allclose(first["llf"], one.llf, rtol=1e-13)
    np.testing.assert_allclose(first["bse"], one.bse["Days"], rtol=1e-10)
    np.testing.assert_allclose(first["sd"], one.varcorr["std_error"], rtol=1e-8)
    assert first["reason"] == one.reason.tolist()
    assert first["nobs"] == one.nobs.tolist()
