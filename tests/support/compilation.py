"""How tests compile what runs for milliseconds: nearly all of their time would go into compiling it."""

from __future__ import annotations

ONE_PART: dict[str, str | bool | int] = {"xla_cpu_parallel_codegen_split_count": 1}
"""Code is generated in one part: the same code, for 10 to 25% less work. Parts pay where cores are idle; here
every core has a worker of pytest-xdist."""

LIKE_FITS: dict[str, str | bool | int] = {**ONE_PART, "xla_cpu_use_fusion_emitters": False}
"""As the front end compiles its kernels; half the work of the default."""

QUICKLY: dict[str, str | bool | int] = {**LIKE_FITS, "xla_backend_optimization_level": 0}
"""Without optimised machine code, for oracles and toy functions; a quarter of the work of the default."""
