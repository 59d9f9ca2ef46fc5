"""The modelling core without the graph: one scikit-learn estimator.

What belongs here: ``LTVModel``, which runs the same stage functions as the assets. What does not: the stages. Next to read:
``stages.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ltv_assets.core.config import ModelsConfig, SamplingConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.dataset import Floats, WindowData, prepare_window
from ltv_assets.modeling.model_set import CHUNK_ROWS, WindowModels
from ltv_assets.modeling.serialization import from_json, read_folder, to_json, write_folder
from ltv_assets.modeling.stages import WindowContext, fit_window
from ltv_assets.modeling.stages import refit as refit_window


class LTVModel(RegressorMixin, BaseEstimator):
    """Revenue of the next 7, 14 and 28 days, calibrated buyer probability and zero gate, from one table of features.

    Parameters
    ----------
    models, sampling : the configuration's sections; None means their defaults.
    random_state : seed of every draw and every booster.
    num_threads : threads of LightGBM; the same number gives the same bits on one machine.

    Attributes
    ----------
    models_ : the four fitted stages. feature_names_in_, n_features_in_ : training columns.

    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame({"spend": rng.exponential(2, 3000), "country": pd.Categorical(rng.choice(["us", "de"], 3000))})
    >>> pays = rng.random(3000) < 0.02 + 0.3 * (X["spend"] > 4)
    >>> revenue = np.where(pays, X["spend"] * rng.lognormal(0, 0.5, 3000), 0.0)
    >>> model = LTVModel(random_state=0).fit(X, revenue, period=np.arange(3000) // 1000)
    >>> frame = model.predict_frame(X)
    >>> bool(((frame.ltv_d7 <= frame.ltv_d14) & (frame.ltv_d14 <= frame.ltv_d28)).all())
    True
    """

    def __init__(
        self,
        *,
        models: ModelsConfig | None = None,
        sampling: SamplingConfig | None = None,
        random_state: int = 0,
        num_threads: int = 2,
    ) -> None:
        self.models = models
        self.sampling = sampling
        self.random_state = random_state
        self.num_threads = num_threads

    def fit(self, X: Any, revenue: Any, period: ArrayLike | None = None, row_id: ArrayLike | None = None) -> Self:
        """Fit all stages.

        X : frame of numeric and categorical columns, or numeric array. revenue : D7 revenue in USD (n,), or a frame with d7
        and optionally d14, d28. period : orders rows in time (days as text, dates or numbers). row_id : identifiers for
        hash draws. Raises DataError for NaN, infinite or negative revenue and for a window without payers.
        """
        if revenue is None:
            raise ValueError("requires y to be passed, but the target y is None: revenue is missing")
        models, sampling = self._settings()
        data = prepare_window(X, revenue, period, row_id)
        self.models_ = fit_window(WindowContext(data, models, sampling, self.random_state, self.num_threads))
        self._data: WindowData | None = data
        self._remember(data.X.columns, named=isinstance(X, pd.DataFrame))
        return self

    def refit(self, X: Any, revenue: Any, period: ArrayLike, row_id: ArrayLike | None = None) -> LTVModel:
        """A new model fitted on the training rows and the rows given here, with this model's tree counts.

        ``period`` of the new rows must be comparable with the training rows' (later days sort after earlier ones).
        """
        check_is_fitted(self, "models_")
        data: WindowData | None = getattr(self, "_data", None)
        if data is None:
            raise ModelFileError("a loaded model does not hold its training rows: fit a new model on all rows instead")
        holdout = prepare_window(X, revenue, period, row_id)
        models, sampling = self._settings()
        context = WindowContext(data, models, sampling, self.random_state, self.num_threads)
        served = LTVModel(**self.get_params(deep=False))
        served.models_ = refit_window(self.models_, context, holdout)
        served._data = None
        served._remember(data.X.columns, named=hasattr(self, "feature_names_in_"))
        return served

    def predict(self, X: Any) -> Floats:
        """LTV of the shortest horizon in USD (n,): RMSLE-optimal, ungated."""
        return self.predict_frame(X)[self.models_.names.ltv[0]].to_numpy()

    def predict_frame(self, X: Any, chunk_rows: int = CHUNK_ROWS) -> pd.DataFrame:
        """All scored columns, with X's index; ``chunk_rows`` bounds memory and changes nothing else."""
        check_is_fitted(self, "models_")
        if not isinstance(X, pd.DataFrame):
            X = validate_data(self, X, reset=False, dtype=None, ensure_all_finite=False, ensure_min_samples=0)
        return self.models_.score(X, chunk_rows)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write text and JSON files with a manifest of hashes into a new folder; published by one rename, never pickle."""
        check_is_fitted(self, "models_")
        models, sampling = self._settings()
        meta = {
            "models": models.model_dump(mode="json"),
            "sampling": sampling.model_dump(mode="json"),
            "random_state": self.random_state,
            "num_threads": self.num_threads,
            "columns": [str(c) for c in self._columns],
            "named": hasattr(self, "feature_names_in_"),
        }
        write_folder(folder, {**self.models_.to_files(), "ltv_model.json": to_json(meta)})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> LTVModel:
        """Read a saved model; every file is compared with its hash first, ModelFileError names the one that disagrees."""
        files = read_folder(folder)
        meta = from_json(files, "ltv_model.json")
        model = cls(
            models=ModelsConfig.model_validate(meta["models"]),
            sampling=SamplingConfig.model_validate(meta["sampling"]),
            random_state=int(meta["random_state"]),
            num_threads=int(meta["num_threads"]),
        )
        model.models_ = WindowModels.from_files(files)
        model._remember(meta["columns"], named=bool(meta["named"]))
        return model

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.target_tags.positive_only = True
        tags.regressor_tags.poor_score = True  # the target is log1p of a zero-inflated amount, not its mean
        return tags

    def _settings(self) -> tuple[ModelsConfig, SamplingConfig]:
        return self.models or ModelsConfig(), self.sampling or SamplingConfig()

    def _remember(self, columns: Iterable[Any], *, named: bool) -> None:
        self._columns = list(columns)
        self.n_features_in_ = len(self._columns)
        if named:
            self.feature_names_in_ = np.asarray(self._columns, dtype=object)
