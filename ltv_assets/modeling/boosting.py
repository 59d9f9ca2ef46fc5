"""LightGBM, reduced to what the stages need.

What belongs here: one way to train a booster (deterministic, on shared bins, starting from a stated score), one way to
choose its number of trees on later time, one stored form. What does not: targets and their meaning. Next to read:
``classifier.py``.

A model is ``start + sum of trees``. The start is stored beside the trees instead of inside them, because LightGBM leaves
``init_score`` out of its predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ltv_assets.core.config import BoosterConfig
from ltv_assets.core.errors import ModelFileError
from ltv_assets.modeling.dataset import Floats
from ltv_assets.modeling.design_matrix import FloatMatrix, Matrix, bin_params
from ltv_assets.modeling.lightgbm_params import repeatable_params
from ltv_assets.modeling.serialization import Files, from_json, seal_text, to_json, unseal_text
from ltv_assets.modeling.single_row import SingleRowPredictor

Params = dict[str, Any]
Metric = Callable[[Floats, Floats], float]
Curves = dict[str, list[float]]


ONE_THREAD_ROWS = 16_384
"""Up to this many rows are predicted by the calling thread alone: whoever scores in small chunks runs several of them side by side."""


@dataclass(frozen=True, eq=False)
class TreeModel:
    """A fitted booster and its constant start; ``predict`` gives raw scores (log-odds, log mean or log1p USD)."""

    text: str
    start: float
    names: tuple[str, ...]
    threads: int
    _booster: lgb.Booster = field(repr=False)

    @classmethod
    def of(cls, text: str, start: float, names: tuple[str, ...], threads: int) -> TreeModel:
        """Load a verified model text."""
        return cls(text, start, names, threads, lgb.Booster(model_str=text))

    @property
    def n_trees(self) -> int:
        """Trees of the booster."""
        return int(self._booster.num_trees())

    def predict(self, values: FloatMatrix, start: Floats | float | None = None) -> Floats:
        """Raw scores (n,); ``start`` replaces the stored constant for models that continue another model's score."""
        base = self.start if start is None else start
        if len(values) == 0:
            return np.zeros(0)
        if values.shape[1] != len(self.names):
            raise ModelFileError(f"model expects {len(self.names)} columns, found {values.shape[1]}: it belongs to another encoder")
        used, booster, single = self._narrow
        if len(values) == 1:
            raw = np.array([single.score(values[0], used)])
        else:
            threads = 1 if len(values) <= ONE_THREAD_ROWS else self.threads
            raw = np.asarray(booster.predict(np.take(values, used, axis=1), raw_score=True, num_threads=threads), dtype=np.float64)
        # LightGBM's raw scores of a random forest are sums over trees, not the average that a forest is.
        return base + (raw / self.n_trees if self._averages else raw)

    def growth(self, values: FloatMatrix, counts: Sequence[int]) -> Floats:
        """Raw scores (n, c) without the start, under the first trees alone: ascending numbers of them."""
        used, booster, _ = self._narrow
        narrow, out, before = np.take(values, used, axis=1), np.zeros((len(values), len(counts))), 0
        for i, count in enumerate(counts):
            added = booster.predict(narrow, raw_score=True, start_iteration=before, num_iteration=count - before, num_threads=self.threads)
            out[:, i] = np.asarray(added) + (out[:, i - 1] if i else 0.0)
            before = count
        return out

    @cached_property
    def _averages(self) -> bool:
        return "\naverage_output\n" in self.text[:2000]

    @cached_property
    def _narrow(self) -> tuple[NDArray[np.int64], lgb.Booster, SingleRowPredictor]:
        """Columns that occur in a split, and the same trees on those columns alone: LightGBM copies every column of every row."""
        used, text = narrowed(self.text)
        booster = lgb.Booster(model_str=text)
        return used, booster, SingleRowPredictor(booster, len(used))

    def importance(self) -> dict[str, dict[str, float]]:
        """Total gain and number of splits of each feature that is used."""
        gain = self._booster.feature_importance("gain")
        split = self._booster.feature_importance("split")
        return {n: {"gain": float(g), "split": float(s)} for n, g, s in zip(self.names, gain, split, strict=True) if s > 0}

    def contributions(self, values: FloatMatrix) -> Floats:
        """SHAP values (n, m): what each feature adds to a row's raw score, by TreeSHAP (Lundberg et al. 2020, path-dependent).

        A row's values and the trees' mean score add up to its raw score.
        """
        found = np.asarray(self._booster.predict(values, pred_contrib=True, num_threads=self.threads), dtype=np.float64)
        return found[:, :-1]

    def to_files(self, name: str) -> Files:
        """``<name>.txt`` (sealed LightGBM text) and ``<name>.json`` (start, column names)."""
        meta = {"start": self.start, "names": list(self.names), "threads": self.threads}
        return {f"{name}.txt": seal_text(self.text), f"{name}.json": to_json(meta)}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], name: str) -> TreeModel:
        """Inverse of ``to_files``; raises ModelFileError when a file is missing, torn or altered."""
        meta = from_json(files, f"{name}.json")
        return cls.of(unseal_text(files, f"{name}.txt"), float(meta["start"]), tuple(meta["names"]), int(meta["threads"]))


def narrowed(text: str) -> tuple[NDArray[np.int64], str]:
    """Column numbers that occur in a split of a LightGBM model, ascending, and the model's text rewritten for only those columns.

    Thresholds, leaves and their order stay as they are, so predictions are the same bit for bit. A model without any split
    keeps its first column.
    """
    head, mark, trees = text.partition("\nTree=0\n")
    splits = [line.removeprefix("split_feature=").split() for line in trees.splitlines() if line.startswith("split_feature=")]
    used = sorted({int(column) for columns in splits for column in columns}) or [0]
    place = {str(column): str(i) for i, column in enumerate(used)}

    def header(line: str) -> str:
        key, _, value = line.partition("=")
        if key == "max_feature_idx":
            return f"{key}={len(used) - 1}"
        if key in ("feature_names", "feature_infos"):
            values = value.split(" ")
            return f"{key}={' '.join(values[column] for column in used)}"
        return line

    def tree(line: str) -> str:
        key, _, value = line.partition("=")
        return f"{key}={' '.join(place[column] for column in value.split())}" if key == "split_feature" else line

    # Without the sizes, which no longer fit, LightGBM looks for the trees itself; constraints only matter to training.
    kept = [header(line) for line in head.split("\n") if not line.startswith(("tree_sizes=", "monotone_constraints="))]
    body = trees.partition("\nend of trees\n")[0]
    return np.array(used), "\n".join(kept) + mark + "\n".join(tree(line) for line in body.split("\n")) + "\nend of trees\n"


def booster_params(config: BoosterConfig, objective: str, **extra: Any) -> Params:
    """LightGBM parameters of a configured booster."""
    params: Params = {
        "objective": objective,
        "num_leaves": config.num_leaves,
        "learning_rate": config.learning_rate,
        "min_data_in_leaf": config.min_data_in_leaf,
        "feature_fraction": config.feature_fraction,
        "lambda_l2": config.lambda_l2,
    }
    if config.bagging_fraction < 1.0:
        params |= {"bagging_fraction": config.bagging_fraction, "bagging_freq": 1}
    return params | extra


def fixed_params(seed: int, threads: int, max_bin: int) -> Params:
    """`repeatable_params` and the binning of a window's boosters, without LightGBM's own metrics."""
    # by rows LightGBM would hold the bins twice
    return bin_params(max_bin) | repeatable_params(seed, threads, by_row=False) | {"metric": "None"}


@dataclass(frozen=True, eq=False)
class Chosen:
    """A number of trees that later time chose; ``model`` has these trees, so its predictions of the later rows are out of fold.

    ``grown``: the same booster with the trees beyond them, after which the search stopped.
    """

    rounds: int
    curves: Curves
    model: TreeModel
    grown: TreeModel


class RemoteFit(Protocol):
    """Fits a given number of trees somewhere else and returns LightGBM's model text; see ``distributed.Cluster.fit``."""

    def __call__(
        self,
        matrix: Matrix,
        label: Floats,
        params: Params,
        rounds: int,
        *,
        weight: NDArray[Any] | None,
        start: Floats | float | None,
        rows: NDArray[np.int64] | None,
    ) -> str:
        """Arguments as in `Trainer.train`."""
        ...


@dataclass(frozen=True)
class Trainer:
    """Trains boosters with one seed and thread count; shared by all stages of a window.

    ``remote``: where the served boosters are fitted, those on every row of the window; None means here. Everything that
    stops early or predicts out of fold stays here, on the auxiliary rows.
    """

    seed: int
    threads: int
    remote: RemoteFit | None = None

    def train(
        self,
        matrix: Matrix,
        label: Floats,
        params: Params,
        rounds: int,
        *,
        weight: NDArray[Any] | None = None,
        start: Floats | float | None = None,
        rows: NDArray[np.int64] | None = None,
        served: bool = False,
    ) -> TreeModel:
        """Fit ``rounds`` trees. label, weight and start are those of ``rows`` (row numbers; None means all rows).

        ``served``: this is the booster that scores new rows, fitted on every row of the window.
        Without a start LightGBM begins at the mean and stores it inside the first tree.
        """
        params, rounds = params | fixed_params(self.seed, self.threads, matrix.max_bin), max(rounds, 1)
        constant = float(start) if start is not None and np.ndim(start) == 0 else 0.0
        if served and self.remote is not None:
            text = self.remote(matrix, label, params, rounds, weight=weight, start=start, rows=rows)
        else:
            text = lgb.train(params, self._dataset(matrix, label, weight, start, rows), rounds).model_to_string()
        return TreeModel.of(text, constant, matrix.names, self.threads)

    def choose_rounds(
        self,
        matrix: Matrix,
        label: Floats,
        params: Params,
        config: BoosterConfig,
        later: Matrix,
        metrics: Mapping[str, Callable[[Floats], float]],
        *,
        weight: NDArray[Any] | None = None,
        start: Floats | float | None = None,
        later_start: Floats | float | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> Chosen:
        """Number of trees with the lowest first metric on ``later`` rows, the booster of that size, and every metric per iteration.

        ``metrics`` map raw scores of the later rows to a loss; the first one stops training after ``patience`` trees
        without improvement, the others are recorded for pictures.
        """
        dataset = self._dataset(matrix, label, weight, start, rows)
        valid = lgb.Dataset(later.values, label=np.zeros(len(later)), reference=dataset)
        scores = np.asarray(start if later_start is None else later_start, dtype=np.float64) if start is not None else np.zeros(1)

        inverse = _INVERSE_LINK[params["objective"]]

        def evaluate(response: Floats, _: lgb.Dataset) -> list[tuple[str, float, bool]]:
            raw = inverse(response) + scores
            return [(name, metric(raw), False) for name, metric in metrics.items()]

        curves: dict[str, Curves] = {}
        booster = lgb.train(
            params | fixed_params(self.seed, self.threads, matrix.max_bin),
            dataset,
            config.max_rounds,
            valid_sets=[valid],
            valid_names=["later"],
            feval=evaluate,
            callbacks=[lgb.early_stopping(config.patience, first_metric_only=True, verbose=False), lgb.record_evaluation(curves)],
        )
        rounds = max(int(booster.best_iteration), 1)
        constant = float(start) if start is not None and np.ndim(start) == 0 else 0.0
        model, grown = (TreeModel.of(booster.model_to_string(num_iteration=n), constant, matrix.names, self.threads) for n in (rounds, -1))
        return Chosen(rounds, {name: list(map(float, values)) for name, values in curves.get("later", {}).items()}, model, grown)

    def _dataset(
        self, matrix: Matrix, label: Floats, weight: NDArray[Any] | None, start: Floats | float | None, rows: NDArray[np.int64] | None
    ) -> lgb.Dataset:
        dataset = matrix.binned()
        # What the last booster left; a subset would inherit it.
        dataset.set_field("weight", None)
        dataset.set_field("init_score", None)
        if rows is not None and len(rows) < len(matrix):  # a subset of all rows would be a second copy of the bins
            dataset = dataset.subset(cast(list[int], rows))
            dataset.free_raw_data = True  # otherwise LightGBM asks for the subset's values, in float64
            dataset.construct()
        dataset.set_label(label)
        if weight is not None:
            dataset.set_weight(weight)
        if start is not None:
            dataset.set_init_score(np.broadcast_to(np.asarray(start, dtype=np.float64), (len(label),)).copy())
        dataset.label = dataset.weight = dataset.init_score = None  # LightGBM has its own; these copies are 16 bytes a row
        return dataset


def _logit(probability: Floats) -> Floats:
    p = np.clip(probability, 1e-15, 1 - 1e-15)
    return np.log(p / (1 - p))


# LightGBM hands its own objectives' predictions to metrics on the response scale, starts are on the raw scale.
_INVERSE_LINK: dict[str, Callable[[Floats], Floats]] = {
    "regression": lambda response: response,
    "poisson": lambda response: np.log(np.maximum(response, 1e-300)),
    "binary": _logit,
}


def row_dot(rows: NDArray[Any], weights: NDArray[Any]) -> Floats:
    """Each row times ``weights``, (n,): like ``rows @ weights``, but a row's sum does not depend on how many rows there are.

    BLAS picks other kernels, with another order of summation, for one row than for many.
    """
    return np.einsum("ij,j->i", np.ascontiguousarray(rows), weights).astype(np.float64)


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), finite for 0 and 1."""
    p = min(max(probability, 1e-6), 1 - 1e-6)
    return float(np.log(p / (1 - p)))


def sigmoid(log_odds: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -log_odds))


def log_loss(label: Floats, odds: Floats) -> float:
    """Mean negative log-likelihood of 0/1 labels given log-odds."""
    return float(np.mean(np.logaddexp(0.0, odds) - label * odds))


def log_metrics(log_revenue: Floats) -> dict[str, Callable[[Floats], float]]:
    """RMSLE (root mean squared error in log1p USD) and MAE (USD) of log1p scores against the given rows."""
    revenue = np.expm1(log_revenue)
    return {
        "rmsle": lambda score: float(np.sqrt(np.mean((np.clip(score, 0.0, None) - log_revenue) ** 2))),
        "mae_usd": lambda score: float(np.mean(np.abs(np.expm1(np.clip(score, 0.0, None)) - revenue))),
    }
