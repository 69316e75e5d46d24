"""How tests compile what runs for milliseconds: nearly all of their time would go into compiling it."""

from __future__ import annotations

import os

import jax
import jaxlib.version

FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
"""The options below for whatever else is compiled, operations outside of traced functions among it: 25 to 40%
less work of the processor for the files that compile most. XLA ends a process that names a flag that it does
not have, so that they are for the version of jaxlib that they were tried with."""

if jaxlib.version.__version__.startswith("0.9.") and FLAGS not in os.environ.get("XLA_FLAGS", ""):
    # Read at the first compilation; processes that tests start inherit it.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

Options = dict[str, str | bool | int]


def _known(options: Options) -> Options:
    """Those that the installed version of XLA has: they come and go."""
    found = {}
    for name, value in options.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        found[name] = value
    return found


ONE_PART: Options = _known({"xla_cpu_parallel_codegen_split_count": 1})
"""Code is generated in one part: the same code, for 10 to 25% less work. Parts pay where cores are idle; here
every core has a worker of pytest-xdist."""

LIKE_FITS: Options = {**ONE_PART, **_known({"xla_cpu_use_fusion_emitters": False})}
"""As the front end compiles its kernels; half the work of the default."""

QUICKLY: Options = {**LIKE_FITS, **_known({"xla_backend_optimization_level": 0})}
"""Without optimised machine code, for oracles and toy functions; a quarter of the work of the default."""
