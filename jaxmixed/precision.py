"""The float64 scope of the front end.

The kernels follow the dtype of their inputs and never touch JAX's configuration. The front end computes in
float64 whatever the user's setting, by entering :func:`double_precision` once, outside any trace, and
converting every output to numpy before leaving it: a float64 ``jax.Array`` used outside the scope would
silently become float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax import Array
from jax._src.core import trace_state_clean  # has no public name in every supported version

from jaxmixed.errors import PrecisionError


@contextmanager
def double_precision() -> Iterator[None]:
    """Compute in float64 inside this scope, whatever ``jax_enable_x64`` says, and change nothing outside it.

    Raises
    ------
    PrecisionError
        When entered inside a trace (``jit``, ``grad``, ``vmap`` ...), where the scope cannot work.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> with double_precision():
    ...     str(jnp.ones(2).dtype)
    'float64'
    """
    if not trace_state_clean():
        raise PrecisionError(
            "jaxmixed's data-frame functions cannot be called inside jit, grad or vmap: use the pure "
            "functions of jaxmixed.likelihood there, with jax_enable_x64 set by your program."
        )
    with jax.enable_x64(True):
        yield


def to_host(values: tuple[Array, ...]) -> tuple[np.ndarray, ...]:
    """Copy device arrays to numpy, keeping their dtype."""
    return tuple(np.asarray(value) for value in values)
