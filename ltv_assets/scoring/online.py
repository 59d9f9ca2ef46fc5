"""The served model behind a request: raw impressions in, the scored columns out, one answer for each row.

MLflow loads this module by name (`_load_pyfunc`) and calls `OnlineModel.predict`. What belongs here: reading the model's
folder, verified, once; taking requests apart and putting answers together. What does not: writing that folder and
registering it (``registered.py``), features and models, which are the batch path's own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltv_assets.core.contract import ROW_ID, Contract, load_contract
from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.features.impressions import HOUR_COLUMN, read_impressions
from ltv_assets.features.registry import load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.modeling.model_set import SCORED_COLUMNS, WindowModels

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LISTING = "serving.json"
REGISTRY = "features.yaml"
CONTRACT = "contract.yaml"
MODELS = "models"
SCHEMA_VERSION = 1
ERROR_COLUMN = "error"


def input_columns(contract: Contract) -> tuple[str, ...]:
    """What a request may say of a row; everything else is ignored."""
    moment = (contract.time.column,) if contract.time.layout is None else ()
    return (contract.identifier, HOUR_COLUMN, *(m for m in moment if m is not None), *(column.name for column in contract.inputs))


class OnlineModel:
    """A window's served model with the feature registry it was trained on; loaded once, safe to call from several threads."""

    def __init__(self, models: WindowModels, flattener: RowFlattener, contract: Contract | None = None) -> None:
        self._contract = contract or load_contract()
        self._inputs = frozenset(input_columns(self._contract))
        self._models = models
        self._flattener = flattener

    @classmethod
    def load(cls, folder: Path) -> OnlineModel:
        """Read a folder that `ltv_assets.scoring.mlflow_model.write_files` wrote.

        Raises ModelFileError when a file is missing, altered or of another version.
        """
        files = _verified(folder)
        models = WindowModels.from_files({n.removeprefix(f"{MODELS}/"): data for n, data in files.items() if n.startswith(f"{MODELS}/")})
        contract = load_contract(folder / CONTRACT) if CONTRACT in files else load_contract()
        return cls(models, RowFlattener(load_registry(folder / REGISTRY, contract)), contract)

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Score impressions: ``row_id`` if the identifier was given, the columns of ``SCORED_COLUMNS``, and ``error``.

        A malformed row has nulls and a sentence in ``error`` that names row, column, what was expected and what was found;
        the rows beside it are scored. Raises DataError when the request has no column of an impression at all.
        """
        import pandas as pd

        given = [name for name in model_input.columns if name in self._inputs]
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise DataError(f"the request has column {twice[0]} more than once; expected each column once")
        if not given:
            first = self._contract.inputs[0].name
            raise DataError(f"the request has no column of an impression; expected {HOUR_COLUMN} and columns such as {first}")
        values = model_input[given].to_numpy(dtype=object)
        impressions = read_impressions({name: values[:, j].tolist() for j, name in enumerate(given)}, len(model_input), self._contract)
        problems = dict(impressions.problems)
        good = np.array([row not in problems for row in range(len(model_input))], dtype=bool)
        scores = self._scores(impressions.table if good.all() else impressions.table.filter(good), np.flatnonzero(good), problems)
        good &= np.array([row not in problems for row in range(len(good))], dtype=bool)
        answer = pd.DataFrame({name: _spread(values, good) for name, values in scores.items()}, index=model_input.index)
        if (identifier := self._contract.identifier) in given:
            answer.insert(0, ROW_ID, pd.Series(_nullable(model_input[identifier]), index=answer.index, dtype=object))
        answer[ERROR_COLUMN] = pd.Series([problems.get(row) for row in range(len(good))], index=answer.index, dtype=object)
        return answer

    def _scores(self, table: pa.Table, rows: np.ndarray, problems: dict[int, str]) -> dict[str, np.ndarray]:
        """Scores of the rows that can be scored; the others, whose numbers ``rows`` gives, join ``problems``.

        What stops a table is looked for in its halves, so that one impression never costs those beside it.
        """
        try:
            return self._score(table)
        except Exception as error:
            if len(rows) == 1:
                problems[int(rows[0])] = f"row {rows[0]}: cannot be scored ({type(error).__name__}: {' '.join(str(error).split()):.200})"
                return {name: np.empty(0) for name in SCORED_COLUMNS}
        half = len(rows) // 2
        parts = [self._scores(table.slice(low, high - low), rows[low:high], problems) for low, high in ((0, half), (half, len(rows)))]
        return {name: np.concatenate([part[name] for part in parts]) for name in SCORED_COLUMNS}

    def _score(self, table: pa.Table) -> dict[str, np.ndarray]:
        if table.num_rows == 0:
            return {name: np.empty(0) for name in SCORED_COLUMNS}
        scores = self._models.score(self._flattener.features(table).to_pandas())
        return {name: scores[name].to_numpy() for name in SCORED_COLUMNS}


def _spread(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """Values of the good rows in their places; the places between are None, which JSON can say and NaN it cannot."""
    if good.all():
        return values
    out = np.full(len(good), None, dtype=object)
    out[good] = values.tolist()
    return out


def _nullable(column: pd.Series) -> list[Any]:
    import pandas as pd

    # Only a number can be NaN; asking anything else whether it equals itself may have more answers than two.
    return [None if value is pd.NA or (isinstance(value, float) and value != value) else value for value in column.tolist()]


def _verified(folder: Path) -> dict[str, bytes]:
    try:
        listing = json.loads((folder / LISTING).read_bytes())
        version, hashes = listing["schema_version"], dict(listing["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder / LISTING}: not a readable list of the model's files ({error}); register the model again") from None
    if version != SCHEMA_VERSION:
        raise ModelFileError(
            f"{folder / LISTING}: schema version {version}, this ltv-assets reads {SCHEMA_VERSION}; register the model again"
        )
    files = {}
    for name, expected in hashes.items():
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise ModelFileError(f"{folder / name}: cannot be read ({error.strerror}); register the model again") from None
        found = sha256_hex(files[name])
        if found != expected:
            raise ModelFileError(f"{folder / name}: sha256 {found[:12]}, expected {expected[:12]}; the file was altered, register again")
    if REGISTRY not in files:
        raise ModelFileError(f"{folder / LISTING}: {REGISTRY} is not listed; register the model again")
    return files


def _load_pyfunc(path: str) -> OnlineModel:
    """Entry point that MLflow calls with the model's data folder."""
    return OnlineModel.load(Path(path))
