"""`MixedModelRegressor`: a mixed model as a scikit-learn estimator.

The estimator turns what scikit-learn hands it (arrays, groups, weights) into a formula and a data frame, and
leaves the rest to `jaxmixed.mixed` and `MixedResults`. scikit-learn is imported with this module, which is
loaded at the first use of ``jaxmixed.MixedModelRegressor``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxmixed import optim
from jaxmixed.errors import DataError, DesignError, FormulaError, JaxMixedError, JaxMixedWarning, user_level
from jaxmixed.formula import parse
from jaxmixed.model import mixed
from jaxmixed.regressor_inputs import (
    ArrayColumns,
    as_table,
    column_names,
    frame_of,
    free_name,
    positions,
    read_groups,
    weighted,
    with_columns,
)
from jaxmixed.results import MixedResults
from jaxmixed.terms import Column

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.metrics import r2_score
    from sklearn.utils.validation import check_array, check_is_fitted, column_or_1d, validate_data
except ImportError:  # `from jaxmixed import *` must still work: the class refuses when it is made

    class BaseEstimator:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            """Refuse, and say what to install."""
            raise JaxMixedError(
                f"{cls.__name__} needs scikit-learn 1.6 or later: pip install 'jaxmixed[sklearn]'"
            )

    class RegressorMixin:  # type: ignore[no-redef]
        """Stands in for scikit-learn's."""


_MISSING_OPTIONS = ("raise", "drop")
_LONGEST_FORMULA = 9_000  # characters; the grammar's own limit is a little higher
_NO_GROUPS = (
    "fit() got no groups, so this is a linear model without random effects. If groups were meant: "
    "cross_validate(groups=...) and GridSearchCV.fit(groups=...) give them to the splitter alone; put them "
    "in X and name their column in group_columns=, or have them routed, set_fit_request(groups=True). "
    "group_columns=[] says that no groups are meant."
)


class MixedModelRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Linear mixed model (multilevel, hierarchical linear model) as a scikit-learn regressor.

    Either give a formula and fit a data frame, ``fit(df)``, or give arrays and groups, ``fit(X, y,
    groups=school)``: then all columns of X have fixed effects, and each grouping factor has a random
    intercept and the ``random_slopes``.

    Parameters
    ----------
    formula : str, optional
        As for `jaxmixed.mixed`: ``"mathach ~ ses + (1 + ses | school)"``. Without a left side,
        ``"~ ses + (1 | school)"``, the response is the ``y`` of `fit`. The columns of an array are called
        ``x0``, ``x1``, …
    group_columns : str, int, or list of them, optional
        Columns of X that hold the grouping factors (by name or position), for use without ``groups=``. They
        have no fixed effects. ``[]`` says that a linear model without groups is meant.
    random_slopes : str, int, list or mapping, optional
        Columns of X whose effects vary between groups: of every grouping factor, or by the name of the
        factor, ``{"school": ["ses"]}``.
    nested : bool
        Whether labels of a grouping factor repeat in different levels of the factors before it: class 1 of
        school 1 is not class 1 of school 2. Factors are otherwise nested or crossed as their labels say.
    fit_intercept : bool
        Whether the fixed effects have an intercept.
    method : {"reml", "ml"}
        Restricted or full maximum likelihood.
    covariance : str or mapping, optional
        Structure of the random effects, "unstructured" (default), "independent", "identity" or
        "exchangeable"; for all, or by grouping factor.
    contrasts, functions : mapping, optional
        With a formula, as for `jaxmixed.mixed`.
    missing : {"raise", "drop"}
        What a missing value does: it is refused, as scikit-learn does; or its row is left out of the fit and
        of the score, and has the prediction NaN.
    max_iterations : int
        Limit on the optimiser's iterations.

    Attributes
    ----------
    result_ : MixedResults
        The fit itself: standard errors, tests, tables, plots.
    coef_ : ndarray of shape (n_coefficients,)
        Fixed effects without the intercept, in the order of X's predictors (of the formula's columns); zero
        for a column that was dropped because it is a combination of others.
    coef_names_ : ndarray of shape (n_coefficients,)
        Their names.
    intercept_ : float
        Fixed intercept; 0.0 without one.
    sigma_ : float
        Residual standard deviation (of a row of weight 1).
    variance_components_ : dict of str to DataFrame
        By grouping factor: covariance matrix of the random effects of a level.
    random_effects_ : dict of str to DataFrame
        By grouping factor: predicted random effects (BLUPs), a row per level.
    n_iter_ : int
        Newton steps of the optimiser.
    n_features_in_, feature_names_in_
        Number and names of the columns of X seen in `fit`, without the response.

    See Also
    --------
    jaxmixed.mixed : the same models, with all of their results.

    Notes
    -----
    scikit-learn gives ``groups`` to splitters, and to estimators only on request. Three ways lead them here:

    - ``group_columns=`` (or a formula), which needs no request, and works in every tool;
    - ``sklearn.set_config(enable_metadata_routing=True)`` and ``regressor.set_fit_request(groups=True)``,
      with ``set_predict_request`` and ``set_score_request`` if predictions of known groups shall use their
      effects;
    - a pipeline's ``fit(X, y, mixedmodelregressor__groups=school)``.

    ``sample_weight`` are precision weights, Var(e_i) = sigma² / w_i, and not numbers of copies; a row of
    weight zero is left out.

    Examples
    --------
    >>> import jaxmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> model = jm.MixedModelRegressor("Reaction ~ Days + (Days | Subject)").fit(data)
    >>> model.predict({"Days": [10, 10], "Subject": ["308", "new"]}).round(2).tolist()
    [450.33, 356.08]

    The same model from arrays:

    >>> X, y, subject = data[["Days"]], data["Reaction"], data["Subject"]
    >>> model = jm.MixedModelRegressor(random_slopes=["Days"]).fit(X, y, groups=subject)
    >>> model.coef_.round(3).tolist(), round(model.sigma_, 3)
    ([10.467], 25.592)

    New subjects, and a search for the formula that predicts them best:

    >>> from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
    >>> X = data[["Days", "Subject"]]
    >>> model = jm.MixedModelRegressor(group_columns="Subject", random_slopes="Days")
    >>> cross_val_score(model, X, y, groups=subject, cv=GroupKFold(3)).shape
    (3,)
    >>> formulas = {"formula": ["~ 1", "~ Days + (Days | Subject)"]}
    >>> search = GridSearchCV(jm.MixedModelRegressor(), formulas, cv=GroupKFold(3))
    >>> search.fit(X, y, groups=subject).best_params_
    {'formula': '~ Days + (Days | Subject)'}
    """

    result_: MixedResults
    n_features_in_: int
    feature_names_in_: np.ndarray
    _group_positions: tuple[int, ...]  # columns of X that hold grouping factors
    _predictors: list[str]  # names of the other columns
    _columns: ArrayColumns
    _given: tuple[str, ...]  # names of the grouping factors that came as groups=
    _from_array: bool  # whether a formula was fitted to an array
    _response_name: str | None  # column that a formula has as its response

    def __init__(
        self,
        formula: str | None = None,
        *,
        group_columns: str | int | Sequence[str | int] | None = None,
        random_slopes: Any = None,
        nested: bool = False,
        fit_intercept: bool = True,
        method: str = "reml",
        covariance: str | Mapping[str, str] | None = None,
        contrasts: Mapping[str, str] | None = None,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        missing: str = "raise",
        max_iterations: int = optim.MAX_ITERATIONS,
    ) -> None:
        self.formula = formula
        self.group_columns = group_columns
        self.random_slopes = random_slopes
        self.nested = nested
        self.fit_intercept = fit_intercept
        self.method = method
        self.covariance = covariance
        self.contrasts = contrasts
        self.functions = functions
        self.missing = missing
        self.max_iterations = max_iterations

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks about an estimator's input."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "drop"
        tags.input_tags.string = tags.input_tags.categorical = self.formula is not None or self._groups_in_X
        tags.target_tags.required = self.formula is None
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` has succeeded."""
        return "result_" in vars(self)

    # The three verbs

    def fit(
        self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None
    ) -> MixedModelRegressor:
        """Fit the model.

        Parameters
        ----------
        X : array_like or data frame of shape (n, n_features)
            Predictors, with the columns that ``group_columns`` names. With a formula, a table with its
            columns.
        y : array_like of shape (n,), optional
            Response. With a formula it takes the place of the response's column, and may be left out where X
            has that column.
        groups : array_like of shape (n,) or (n, g), or data frame, optional
            Labels of one or several grouping factors, called ``group`` (or ``group0``, ``group1``, …), or as
            a Series or data frame calls them. With a formula they are further columns, which it can use by
            these names.
        sample_weight : array_like of shape (n,), optional
            Precision weights, Var(e_i) = sigma² / w_i; zero leaves a row out.

        Returns
        -------
        MixedModelRegressor
            Itself.

        Raises
        ------
        DataError, DesignError, FormulaError, ValueError
            Naming the argument, column, term or level at fault.

        Warns
        -----
        JaxMixedWarning
            Without a formula, groups and group_columns: the model has no random effects.
        ConvergenceWarning, SingularFitWarning, RankDeficientWarning
            As `jaxmixed.mixed`.
        """
        self._check_parameters()
        self.__dict__.pop(
            "result_", None
        )  # so that nothing is predicted from one fit with the columns of another
        door = self._from_arrays if self.formula is None else self._from_formula
        formula, data = door(X, y, groups)
        data, weights = weighted(data, sample_weight)
        result = mixed(
            formula,
            data,
            method=self.method,
            covariance=self.covariance,
            weights=weights,
            missing=self.missing,
            contrasts=self.contrasts,
            functions=self.functions,
            max_iterations=self.max_iterations,
        )
        params, first = result.params.fillna(0.0), int(result.frame.formula.fixed.intercept)
        self.result_ = result
        self.intercept_ = float(params.iloc[0]) if first else 0.0
        self.coef_ = params.to_numpy()[first:].copy()
        names = self._predictors if self.formula is None else params.index[first:]
        self.coef_names_ = np.array(names, dtype=object)
        self.sigma_ = float(result.sigma)
        self.n_iter_ = int(result.diagnostics.iterations)
        return self

    def predict(self, X: Any, groups: Any = None) -> np.ndarray:
        """Predict the response.

        Parameters
        ----------
        X : array_like or data frame of shape (n, n_features)
            As in `fit`.
        groups : array_like of shape (n,) or (n, g), or data frame, optional
            As in `fit`.

        Returns
        -------
        numpy.ndarray of shape (n,)
            With the predicted random effects (BLUPs) of the levels that `fit` has seen. A level that is new
            adds nothing, and nothing is added where `fit` got ``groups`` and this call does not: these are
            population predictions.
        """
        check_is_fitted(self)
        if self.formula is None:
            data, known = self._new_arrays(X, groups)
        else:
            data, known = self._new_table(X, groups)
        values = self.result_.predict(data, random=known, allow_new_levels=True).to_numpy(copy=True)
        if self.missing == "raise" and (absent := int(np.isnan(values).sum())):
            raise DataError(
                f"values are missing in {absent} of {len(values)} rows of X or groups, which have no "
                "prediction; fill them in, or use missing='drop' for predictions of NaN"
            )
        return values

    def score(self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None) -> float:
        """R², the share of the response's variance that the predictions explain.

        Parameters
        ----------
        X, groups
            As in `predict`.
        y : array_like of shape (n,), optional
            Response; with a formula, X's own where it is left out.
        sample_weight : array_like of shape (n,), optional
            Weights of the rows.

        Returns
        -------
        float
            1 - Σ w (y - prediction)² / Σ w (y - mean)².
        """
        predictions = self.predict(X, groups)
        if y is None:
            y = self._own_response(X)
        y = np.asarray(column_or_1d(y), dtype=np.float64)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if self.missing == "drop" and len(y) == len(predictions):
            kept = ~(np.isnan(predictions) | np.isnan(y))
            y, predictions = y[kept], predictions[kept]
            weights = None if weights is None else weights[kept]
        return float(r2_score(y, predictions, sample_weight=weights))

    # What was found

    @property
    def variance_components_(self) -> dict[str, pd.DataFrame]:
        """Covariance matrix of the random effects of a level, by grouping factor."""
        check_is_fitted(self)
        blocks: dict[str, list[pd.DataFrame]] = {}
        for term in self.result_.random_terms:
            blocks.setdefault(term.group, []).append(term.cov)
        return {group: pd.concat(found).fillna(0.0) for group, found in blocks.items()}

    @property
    def random_effects_(self) -> dict[str, pd.DataFrame]:
        """Predicted random effects (BLUPs), by grouping factor: a row per level."""
        check_is_fitted(self)
        return self.result_.ranef()

    # Arguments

    def _check_parameters(self) -> None:
        """Refuse parameters of the constructor that say nothing, or two things."""
        if self.missing not in _MISSING_OPTIONS:
            raise DataError(f"missing={self.missing!r} is not an option; choose 'raise' or 'drop'")
        if self.formula is None:
            given: dict[str, Any] = {"contrasts": self.contrasts, "functions": self.functions}
            why = "are for a formula, which is missing"
        else:
            given = {"group_columns": self.group_columns, "random_slopes": self.random_slopes}
            given |= {"nested": self.nested or None, "fit_intercept": None if self.fit_intercept else False}
            why = "are for models without a formula; write it in the formula instead"
        extra = [name for name, value in given.items() if value is not None]
        if extra:
            raise FormulaError(f"{', '.join(f'{name}=' for name in extra)} {why}")

    @property
    def _groups_in_X(self) -> bool:
        """Whether X is to hold grouping factors."""
        return self.group_columns is not None and np.size(self.group_columns) > 0

    @property
    def _names(self) -> list[str]:
        """Names of the columns of X; none where it had no names."""
        return list(vars(self).get("feature_names_in_", ()))

    @property
    def _finite(self) -> bool | str:
        """What scikit-learn's checks of arrays ask for."""
        return "allow-nan" if self.missing == "drop" else True

    def _response(self, y: Any, rows: int) -> np.ndarray:
        """One finite number per row."""
        values = check_array(
            column_or_1d(y, warn=True),
            ensure_2d=False,
            dtype=np.float64,
            ensure_all_finite=self._finite,
            input_name="y",
        )
        if len(values) != rows:
            raise DataError(f"y has {len(values)} values, but X has {rows} rows")
        return values

    # The door of arrays

    def _from_arrays(self, X: Any, y: Any, groups: Any) -> tuple[str, pd.DataFrame]:
        """Formula and data of a model that is given by arrays."""
        if y is None:
            validate_data(self, X, y, skip_check_array=True)  # says in scikit-learn's words that y is missing
        values, held, index = self._read_arrays(X, reset=True)
        if held and groups is not None:
            raise DataError("groups are given twice, as groups= and by group_columns=; keep one of them")
        factors = held if groups is None else read_groups(groups, len(values))
        if not factors and self.group_columns is None:
            warnings.warn(_NO_GROUPS, JaxMixedWarning, stacklevel=user_level())
        if not factors and self.random_slopes is not None:
            raise DesignError("random_slopes= needs groups, between which the slopes differ; none are given")
        self._given = () if groups is None else tuple(factors)
        features = tuple(j for j in range(self.n_features_in_) if j not in self._group_positions)
        self._predictors = [self._names[j] if self._names else f"x{j}" for j in features]
        formula = self._name_columns(features, self._names, tuple(factors), _label(y))
        if len(formula) > _LONGEST_FORMULA:
            formula = self._name_columns(features, [], tuple(factors), "y")
        if len(formula) > _LONGEST_FORMULA:
            raise DesignError(f"X has {len(features):,} predictors, more than a formula can hold; use fewer")
        data = frame_of(self._columns, values, tuple(factors.values()), index)
        data[self._columns.response] = self._response(y, len(values))
        return formula, data

    def _read_arrays(self, X: Any, reset: bool) -> tuple[np.ndarray, dict[str, Any], pd.Index]:
        """Predictors, the grouping factors that X holds (by name), and labels of the rows."""
        checks = {"dtype": np.float64, "ensure_all_finite": self._finite, "ensure_min_samples": 1 + reset}
        if reset:
            self._group_positions = ()
        if not (self._groups_in_X if reset else self._group_positions):
            values = validate_data(self, X, reset=reset, **checks)
            index = X.index if isinstance(X, pd.DataFrame) else pd.RangeIndex(len(values))
            return values, {}, index
        if not hasattr(X, "columns"):
            X = check_array(X, dtype=None, ensure_all_finite=False)
        validate_data(self, X, reset=reset, skip_check_array=True)
        if reset:
            self._group_positions = positions(
                self.group_columns, self._names, self.n_features_in_, "group_columns"
            )
        table = as_table(X)
        held = {
            self._names[j] if self._names else f"x{j}": table.iloc[:, j].array for j in self._group_positions
        }
        others = [j for j in range(table.shape[1]) if j not in self._group_positions]
        checks["ensure_min_features"] = 0
        values = check_array(table.iloc[:, others], input_name="X", estimator=self, **checks)
        return values, held, table.index

    def _name_columns(
        self, features: tuple[int, ...], names: list[str], groups: tuple[str, ...], response: str
    ) -> str:
        """Choose the names that the formula uses, and write it."""
        taken: set[str] = set()
        group_names = tuple(free_name(name, f"group{i}", taken) for i, name in enumerate(groups))
        feature_names = tuple(free_name(names[j] if names else "", f"x{j}", taken) for j in features)
        self._columns = ArrayColumns(feature_names, group_names, free_name(response, "y", taken))
        return self._formula_text(self._columns, self._slopes(groups, features))

    def _slopes(self, groups: tuple[str, ...], features: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """By grouping factor, which of the predictors have random slopes."""
        given = self.random_slopes
        if not isinstance(given, Mapping):
            given = {} if given is None else dict.fromkeys(groups, given)
        for group in given:
            if group not in groups:
                known = ", ".join(map(repr, groups))
                raise DataError(f"random_slopes= names the group {group!r}; the groups are {known}")
        slopes = []
        for group in groups:
            chosen = positions(given.get(group, ()), self._names, self.n_features_in_, "random_slopes")
            if held := [j for j in chosen if j not in features]:
                raise DataError(f"random_slopes= names column {held[0]} of X, which holds groups")
            slopes.append(tuple(features.index(j) for j in chosen))
        return tuple(slopes)

    def _formula_text(self, columns: ArrayColumns, slopes: tuple[tuple[int, ...], ...]) -> str:
        """The formula: every predictor, and for every grouping factor an intercept and its slopes."""
        parts = ["1" if self.fit_intercept else "0", *(f"`{name}`" for name in columns.features)]
        for i, chosen in enumerate(slopes):
            effects = "+".join(["1", *(f"`{columns.features[j]}`" for j in chosen)])
            group = columns.groups[: i + 1] if self.nested else columns.groups[i : i + 1]
            parts.append(f"({effects}|{':'.join(f'`{name}`' for name in group)})")
        return f"`{columns.response}`~{'+'.join(parts)}"

    def _new_arrays(self, X: Any, groups: Any) -> tuple[pd.DataFrame, bool]:
        """New rows as a table, and whether their groups are known."""
        values, held, index = self._read_arrays(X, reset=False)
        factors = tuple(held.values()) if groups is None else self._new_groups(groups, len(values))
        return frame_of(self._columns, values, factors, index), bool(factors)

    def _new_groups(self, groups: Any, rows: int) -> tuple[Any, ...]:
        """Grouping factors of new rows in the order of the fit."""
        found = read_groups(groups, rows)
        wanted = self._given
        if not wanted:
            raise DataError("groups= are given to predict, but fit got none; give them to fit as well")
        if set(found) == set(wanted):
            return tuple(found[name] for name in wanted)
        if len(found) != len(wanted) or hasattr(groups, "columns"):
            raise DataError(
                f"groups= has the columns {list(found)}, but fit got {list(wanted)}; give the same"
            )
        return tuple(found.values())

    # The door of formulas

    def _from_formula(self, X: Any, y: Any, groups: Any) -> tuple[str, Any]:
        """Formula and data of a model that is given by a formula."""
        table = self._named(X, reset=True)
        added = {} if groups is None else read_groups(groups, len(table))
        self._given = tuple(added)
        formula, self._response_name = self._with_response(str(self.formula), y)
        if y is not None:
            added[str(self._response_name)] = self._response(y, len(table))
        self._record_names(table)
        return formula, with_columns(table, added)

    def _with_response(self, formula: str, y: Any) -> tuple[str, str | None]:
        """The formula with a left side, and the column that this is (None: it is an expression)."""
        functions = frozenset(self.functions or ())
        if not formula.lstrip().startswith("~"):
            response = parse(formula, functions).response
            if isinstance(response, Column):
                return formula, response.name
            if y is None:
                return formula, None
            raise DataError(
                f"the response of the formula is {response.label}, which is made from columns of X, so y "
                "cannot take its place; leave out y, or the left side of the formula"
            )
        if y is None:
            raise DataError(f"the formula {formula!r} has no response; write one before the '~', or give y")
        # The column that y is put into must not be one that the right side reads.
        probe = "y"
        while probe in formula:
            probe += "_"
        right = set(parse(f"{probe} {formula}", functions).columns) - {probe}
        name = free_name(_label(y), "y", right)
        return f"`{name}` {formula.lstrip()}", name

    def _named(self, X: Any, reset: bool) -> Any:
        """X as a table with named columns."""
        if isinstance(X, Mapping):
            X = pd.DataFrame(X)
        if hasattr(X, "columns"):
            self._from_array = False if reset else self._from_array
            return X
        if not reset and not self._from_array:
            raise DataError("the model was fitted to a table with named columns; give predict one as well")
        X = validate_data(
            self, X, reset=reset, dtype=None, ensure_all_finite=False, ensure_min_samples=1 + reset
        )
        self._from_array = True
        return pd.DataFrame(X, columns=[f"x{j}" for j in range(X.shape[1])])

    def _record_names(self, table: Any) -> None:
        """Set the attributes by which scikit-learn knows the columns."""
        if self._from_array:
            return
        names = [name for name in column_names(table) if name != self._response_name]
        self.n_features_in_ = len(names)
        self.__dict__.pop("feature_names_in_", None)
        if all(isinstance(name, str) for name in names):
            self.feature_names_in_ = np.array(names, dtype=object)

    def _new_table(self, X: Any, groups: Any) -> tuple[Any, bool]:
        """New rows as a table, and whether their groups are known."""
        table = self._named(X, reset=False)
        if groups is None:
            return table, set(self._given) <= set(column_names(table))
        factors = self._new_groups(groups, len(table))
        return with_columns(table, dict(zip(self._given, factors, strict=True))), True

    def _own_response(self, X: Any) -> Any:
        """The response's column of X."""
        if self.formula is not None and self._response_name is not None and hasattr(X, "__getitem__"):
            table = pd.DataFrame(X) if isinstance(X, Mapping) else X
            if self._response_name in column_names(table):
                return table[self._response_name]
        raise DataError("score needs y: X has no column that is the response itself")


def _label(y: Any) -> str:
    """Name of a response that has one."""
    return y.name if isinstance(y, pd.Series) and isinstance(y.name, str) else "y"
