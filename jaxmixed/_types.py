"""Array types shared by the numerical modules.

Letters used in shape annotations throughout the package:

- ``n`` rows, ``p`` fixed-effect columns (after dropping aliased ones), ``r = p + 1`` columns of ``[X y]``;
- ``q`` random-effect columns of one level of grouping, ``m`` entries (groups, or patterns of equal groups) of
  that level;
- ``k`` free covariance parameters ``theta``; ``B`` models in a batch.

Batches of small matrices keep the group axis **last** (``"q q m"``): elementwise code then runs along
contiguous memory.
"""

from typing import TypeAlias, TypeVar

import numpy as np
from jax import Array

AnyArray: TypeAlias = Array | np.ndarray
"""Of JAX within a traced function, of numpy on the host before and after it."""

SameArray = TypeVar("SameArray", Array, np.ndarray)
"""What comes out is of the kind that went in."""
