"""What functions of a fitted model ask of it: so they need not import the class of the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jaxmixed.estimates import Estimates
    from jaxmixed.frame import ModelFrame


class Fitted(Protocol):
    """A fit's data and estimates; :class:`~jaxmixed.results.MixedResults` has them."""

    @property
    def frame(self) -> ModelFrame:
        """The data as the model saw them."""

    @property
    def estimates(self) -> Estimates:
        """The estimates."""

    @property
    def state(self) -> Any:
        """The reduced data."""
