r"""Structures of the residuals: how those of one subject are correlated, and whose variances differ.

.. math:: \operatorname{Var}(e) = \sigma^2\, W^{-1/2} R\, W^{-1/2}, \qquad R_{ij} = d_i\, d_j\, C(t_i, t_j),

for rows i and j of the same group, and zero between groups. A structure is passed to :func:`jaxmixed.mixed`::

    jm.mixed("y ~ arm * visit", trial, residuals=jm.residuals.Unstructured(time="visit", group="id"))
    jm.mixed("y ~ arm * visit", trial, residuals="us(visit | id)")

The correlations C are of a family; the standard deviations d may have a value for each level of a column
(`variance_by`), or depend on a covariate (`variance`). All are arguments by keyword:

time : str
    Column of the times. Whole numbers for `AR`, `MA`, `ARMA` and `Toeplitz`, whose gaps count: rows at times
    1 and 3 are two apart. Any numbers for `Exponential`. Labels in their order for `Unstructured`, `Banded`
    and `AnteDependence`, numbers among them. `Exchangeable` needs none.
group : str or tuple of str
    Column whose values say which rows belong together, columns whose combinations do, or the label of a
    grouping of the formula (``"school:class"``). By default the innermost grouping of the formula.
by : str or tuple of str
    Column of strata, each with parameters of its own; constant within groups.
variance_by : str or tuple of str
    Column with a standard deviation for each level, as in nlme's ``varIdent``. With the time's column the
    variances differ by time, which is the default of `Unstructured`, `Banded` and `AnteDependence`; None
    makes them the same.
variance : Power or Exp
    Standard deviations as a function of a covariate, as in nlme's ``varPower`` and ``varExp``.

As text, a structure is a name, the numbers it needs, the time and the group, ``"arma(1, 1, week | id)"``. The
options are ``by=``, ``variance_by=`` and ``nugget``; ``"us(visit | arm/id)"`` is by arm:

==========================================  ======================================================
text                                        structure
==========================================  ======================================================
``iid``, ``independent``                    `Independent`
``diag(visit)``                             `Independent` with ``variance_by="visit"``
``cs(id)``, ``cs(visit | id)``              `Exchangeable`; also ``exchangeable``
``csh(visit | id)``                         the same, with a variance for each visit
``ar1(week | id)``, ``ar(2, week | id)``    `AR`; ``ar1h``, ``arh`` with a variance for each time
``ma1(week | id)``, ``ma(2, week | id)``    `MA`; ``ma1h``, ``mah``
``arma(1, 1, week | id)``                   `ARMA`; ``armah``
``exp(time | id)``                          `Exponential`; also ``sp_exp``, ``ou``, ``exponential``
``toep(week | id)``, ``toep(2, week | id)`` `Toeplitz`; also ``toeplitz``; ``toeph``
``banded(2, visit | id)``                   `Banded`
``us(visit | id)``                          `Unstructured`; also ``un``, ``unstructured``
``adh(visit | id)``                         `AnteDependence`; ``ad`` with one variance
==========================================  ======================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum
from typing import Any, Final, TypeAlias

from jaxmixed.errors import DesignError

__all__ = [
    "AR",
    "ARMA",
    "BY_TIME",
    "MA",
    "AnteDependence",
    "Banded",
    "Custom",
    "Exchangeable",
    "Exp",
    "Exponential",
    "Independent",
    "Power",
    "ResidualStructure",
    "Toeplitz",
    "Unstructured",
    "structure",
]


class _Default(Enum):
    """What an option is that was not given, where None says something else."""

    BY_TIME = "by the time's column"

    def __repr__(self) -> str:
        return "BY_TIME"


BY_TIME: Final = _Default.BY_TIME
"""A standard deviation for each time: the default of structures over labels."""

Columns: TypeAlias = str | tuple[str, ...]
"""A column, or several whose combinations are meant."""


@dataclass(frozen=True, slots=True)
class Power:
    r"""Standard deviations proportional to :math:`|z|^\delta`, of a covariate z that is positive.

    sigma is the standard deviation at z = 1.

    Parameters
    ----------
    covariate : str
        Column of numbers.

    Examples
    --------
    >>> Exchangeable(group="id", variance=Power("dose")).variance
    Power(covariate='dose')
    """

    covariate: str

    def __post_init__(self) -> None:
        _check_columns("the covariate of Power", self.covariate, several=False)


@dataclass(frozen=True, slots=True)
class Exp:
    r"""Standard deviations proportional to :math:`\exp(\delta z)`, of a covariate z.

    sigma is the standard deviation at z = 0: subtract a typical value from a covariate that is far from zero.

    Parameters
    ----------
    covariate : str
        Column of numbers.

    Examples
    --------
    >>> Exp("age")
    Exp(covariate='age')
    """

    covariate: str

    def __post_init__(self) -> None:
        _check_columns("the covariate of Exp", self.covariate, several=False)


@dataclass(frozen=True)
class ResidualStructure:
    """What residual structures have in common.

    Parameters
    ----------
    time : str, optional
    group, by, variance_by : str or tuple of str, optional
    variance : Power or Exp, optional
        See the module's documentation.
    """

    _: KW_ONLY
    time: str | None = None
    group: Columns | None = None
    by: Columns | None = None
    variance_by: Columns | _Default | None = None
    variance: Power | Exp | None = None

    def __post_init__(self) -> None:
        for option, value in (("time", self.time), ("group", self.group), ("by", self.by)):
            if value is not None:
                _check_columns(f"{option}= of {self.text}", value, several=option != "time")
        if self.variance_by is not None and not isinstance(self.variance_by, _Default):
            _check_columns(f"variance_by= of {self.text}", self.variance_by)
        if self.variance is not None and not isinstance(self.variance, Power | Exp):
            raise DesignError(
                f"variance={self.variance!r} of {self.text} is no variance function; give "
                "jm.residuals.Power('column') or jm.residuals.Exp('column')"
            )

    @property
    def text(self) -> str:
        """Name of the family with its numbers, such as "AR(1)"."""
        return type(self).__name__


@dataclass(frozen=True)
class Independent(ResidualStructure):
    """No correlation; with `variance_by`, `by` or `variance` for residuals whose variances differ.

    Parameters
    ----------
    by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> Independent(variance_by="sex").text
    'Independent'
    """

    time: None = field(default=None, init=False, repr=False)
    group: None = field(default=None, init=False, repr=False)


@dataclass(frozen=True)
class Exchangeable(ResidualStructure):
    """One correlation between any two rows of a group: compound symmetry, negative correlations included.

    Parameters
    ----------
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> Exchangeable(group="id").text
    'Exchangeable'
    """


@dataclass(frozen=True)
class AR(ResidualStructure):
    """Autoregression: each residual on the p before it. At whole times; correlations phi**lag for p = 1.

    Parameters
    ----------
    order : int
        Order p.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> AR(2, time="week", group="id").text
    'AR(2)'
    """

    order: int = 1

    def __post_init__(self) -> None:
        _check_order("AR", "order", self.order)
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return f"AR({self.order})"


@dataclass(frozen=True)
class MA(ResidualStructure):
    """Moving average of q innovations: no correlation beyond the lag q. At whole times.

    Parameters
    ----------
    order : int
        Order q.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> MA(time="week", group="id").text
    'MA(1)'
    """

    order: int = 1

    def __post_init__(self) -> None:
        _check_order("MA", "order", self.order)
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return f"MA({self.order})"


@dataclass(frozen=True)
class ARMA(ResidualStructure):
    """Autoregression of order p with innovations that are a moving average of order q. At whole times.

    Parameters
    ----------
    ar, ma : int
        Orders p and q.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> ARMA(1, 1, time="week", group="id").text
    'ARMA(1, 1)'
    """

    ar: int = 1
    ma: int = 1

    def __post_init__(self) -> None:
        _check_order("ARMA", "ar", self.ar)
        _check_order("ARMA", "ma", self.ma)
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return f"ARMA({self.ar}, {self.ma})"


@dataclass(frozen=True)
class Exponential(ResidualStructure):
    r"""Correlations :math:`\exp(-|t - s| / r)` at any times: AR(1) in continuous time.

    Parameters
    ----------
    nugget : bool
        Whether residuals have an independent part too: ``(1 - nugget) exp(-|t - s| / r)`` between rows.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> Exponential(time="hours", group="id", nugget=True).text
    'Exponential with nugget'
    """

    _: KW_ONLY
    nugget: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.nugget, bool):
            raise DesignError(f"nugget={self.nugget!r} of Exponential must be True or False")
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return "Exponential with nugget" if self.nugget else "Exponential"


@dataclass(frozen=True)
class Toeplitz(ResidualStructure):
    """One correlation for each lag between whole times.

    Parameters
    ----------
    order : int, optional
        Longest lag with a correlation; beyond it there is none. By default the longest that occurs.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Examples
    --------
    >>> Toeplitz(time="week", group="id").text
    'Toeplitz'
    """

    order: int | None = None

    def __post_init__(self) -> None:
        if self.order is not None:
            _check_order("Toeplitz", "order", self.order)
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return "Toeplitz" if self.order is None else f"Toeplitz({self.order})"


@dataclass(frozen=True)
class Labelled(ResidualStructure):
    """What structures over labels have in common: by default the variances differ by label."""

    _: KW_ONLY
    variance_by: Columns | _Default | None = BY_TIME


@dataclass(frozen=True)
class Banded(Labelled):
    """Free correlations between labels that are at most so many apart in their order, none beyond.

    Parameters
    ----------
    order : int
        How far correlated labels are apart.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`. The variances differ by label unless ``variance_by=None``.

    Examples
    --------
    >>> Banded(2, time="visit", group="id").text
    'Banded(2)'
    """

    order: int = 1

    def __post_init__(self) -> None:
        _check_order("Banded", "order", self.order)
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return f"Banded({self.order})"


@dataclass(frozen=True)
class Unstructured(Labelled):
    """Free correlations between all labels of the time.

    Parameters
    ----------
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`. The variances differ by label unless ``variance_by=None``.

    Examples
    --------
    >>> Unstructured(time="visit", group="id").variance_by
    BY_TIME
    """


@dataclass(frozen=True)
class AnteDependence(Labelled):
    """Free correlations between neighbouring labels; those of others are their products.

    Parameters
    ----------
    order : int
        1, the only one available.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`. The variances differ by label unless ``variance_by=None``.

    Examples
    --------
    >>> AnteDependence(time="visit", group="id").text
    'AnteDependence(1)'
    """

    order: int = 1

    def __post_init__(self) -> None:
        _check_order("AnteDependence", "order", self.order)
        if self.order != 1:
            raise DesignError(f"AnteDependence({self.order}) is not available: its order can only be 1")
        ResidualStructure.__post_init__(self)

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return f"AnteDependence({self.order})"


@dataclass(frozen=True, kw_only=True)
class Custom(ResidualStructure):
    """Correlations of one's own; made by :func:`structure`.

    Parameters
    ----------
    function : callable
        ``(params, times) -> (t, t)``.
    parameters : tuple of (name, support)
    cholesky : bool
        Whether the function gives a Cholesky factor of the correlations.
    name : str
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.
    """

    function: Callable[..., Any]
    parameters: tuple[tuple[str, Any], ...]
    cholesky: bool = False
    name: str = "custom"

    @property
    def text(self) -> str:
        """Name of the family with its numbers."""
        return self.name


def structure(
    function: Callable[..., Any],
    parameters: Mapping[str, Any],
    *,
    cholesky: bool = False,
    name: str | None = None,
    time: str | None = None,
    group: Columns | None = None,
    by: Columns | None = None,
    variance_by: Columns | None = None,
    variance: Power | Exp | None = None,
) -> Custom:
    """A residual structure of one's own: correlations as a function of parameters and times.

    Parameters
    ----------
    function : callable
        ``(params, times) -> (t, t)`` in ``jax.numpy``, where `params` is a dict of scalars and `times` are
        those of one group (t,): the numbers of the column, or 0, 1, ... for its labels. A symmetric positive
        definite matrix with ones on the diagonal, smooth in the parameters and finite for equal times. It is
        compiled once for each function *object*: define it once, at the top of a module.
    parameters : mapping from name to support
        Where each parameter lies, with its starting value: ``jm.kernels.Positive(1.0)``, ``Correlation``,
        ``Unit``, ``Length``, ``Real``; or ``jm.kernels.Fixed(2.0)`` for one that is known.
    cholesky : bool
        Whether the function gives a lower-triangular factor L instead, with rows of unit length, and the
        correlations are ``L L'``.
    name : str, optional
        What tables call it; by default the function's name.
    time, group, by, variance_by, variance
        See :mod:`jaxmixed.residuals`.

    Returns
    -------
    Custom

    Raises
    ------
    DesignError
        If the function cannot be called, or there are no parameters by name.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import jaxmixed as jm
    >>> def damped(params, times):
    ...     apart = jnp.abs(times[:, None] - times[None, :])
    ...     return jnp.exp(-apart / params["range"]) * jnp.cos(apart * params["frequency"])
    >>> supports = {"range": jm.kernels.Positive(1.0), "frequency": jm.kernels.Unit(0.1)}
    >>> structure(damped, supports, time="week", group="id").text
    'damped'
    """
    if not callable(function):
        raise DesignError(f"the function of a residual structure is {function!r}, which cannot be called")
    if not isinstance(parameters, Mapping) or not all(isinstance(key, str) for key in parameters):
        raise DesignError(
            f"the parameters of a residual structure are {parameters!r}; give a mapping from their names to "
            "supports, such as {'range': jm.kernels.Positive(1.0)}"
        )
    label = name if name is not None else function.__name__ if hasattr(function, "__name__") else "custom"
    return Custom(
        function=function,
        parameters=tuple(parameters.items()),
        cholesky=bool(cholesky),
        name=label,
        time=time,
        group=group,
        by=by,
        variance_by=variance_by,
        variance=variance,
    )


def _check_columns(what: str, value: Any, several: bool = True) -> None:
    """Refuse what is no column's name."""
    names = value if several and isinstance(value, tuple) and value else (value,)
    if not all(isinstance(name, str) and name for name in names):
        more = ", or a tuple of names" if several else ""
        raise DesignError(f"{what} is {value!r}; give the name of a column{more}")


def _check_order(name: str, option: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        advice = ""
        if isinstance(value, str):
            advice = f"; columns are given by keyword, {name}(1, time={value!r}, group=...)"
        raise DesignError(f"{option}={value!r} of {name} must be a positive whole number{advice}")
