"""The served model behind a request: raw impressions in, the scored columns out, one answer for each row.

MLflow loads this module by name (`_load_pyfunc`) and calls `OnlineModel.predict`. What belongs here: reading the model's
folder, verified, once; taking requests apart and putting answers together. What does not: writing that folder and
registering it (``mlflow_model.py``), features and models, which are the batch path's own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltv_assets.core.contract import ROW_ID, Contract, load_contract
from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.features.impressions import HOUR_COLUMN, MalformedRow, example_impression, read_impressions, time_columns
from ltv_assets.features.one_row import OneRow
from ltv_assets.features.registry import load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.modeling.model_set import WindowModels

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LISTING = "serving.json"
REGISTRY = "features.yaml"
CONTRACT = "contract.yaml"
MODELS = "models"
SCHEMA_VERSION = 1
ERROR_COLUMN = "error"
FEW_ROWS = 64
"""Up to this many rows are scored one by one: the engine takes as long for a table of one."""
SAME = 1e-9
"""Largest relative difference between the two ways to score a row."""

Answer = dict[str, Any]


def input_columns(contract: Contract) -> tuple[str, ...]:
    """What a request may say of a row; everything else is ignored."""
    return (contract.identifier, *time_columns(contract), *(column.name for column in contract.inputs))


class OnlineModel:
    """A window's served model with the feature registry it was trained on; loaded once, safe to call from several threads.

    Up to ``FEW_ROWS`` rows are scored one by one without the engine, more of them together; either way a row has the same number.
    """

    def __init__(self, models: WindowModels, flattener: RowFlattener, contract: Contract | None = None) -> None:
        self._contract = contract or load_contract()
        self._inputs = dict.fromkeys(input_columns(self._contract))
        self._models = models
        self._columns = models.names.columns
        self._nothing: Mapping[str, None] = dict.fromkeys(self._columns)
        self._flattener = flattener
        self._one = OneRow(flattener.registry)
        self._score_one = models.row_scorer(self._one.numeric, self._one.categorical)
        self.by_engine = 0
        """Single rows that needed the engine after all."""

    @classmethod
    def load(cls, folder: Path) -> OnlineModel:
        """Read a folder that `ltv_assets.scoring.mlflow_model.write_files` wrote.

        Raises ModelFileError when a file is missing, altered or of another version.
        """
        files = _verified(folder)
        models = WindowModels.from_files({n.removeprefix(f"{MODELS}/"): data for n, data in files.items() if n.startswith(f"{MODELS}/")})
        contract = load_contract(folder / CONTRACT) if CONTRACT in files else load_contract()
        return cls(models, RowFlattener(load_registry(folder / REGISTRY, contract)), contract)

    def warm_up(self) -> None:
        """Score the invented example alone and among others: what is built on first use is there, and both agree.

        Raises ModelFileError if they do not.
        """
        example = example_impression(self._contract)
        alone, among = self.answer(example), self._together([example] * 2)[1]
        if alone[ERROR_COLUMN] is not None:
            raise ModelFileError(f"the model cannot score the example: {alone[ERROR_COLUMN]}")
        differing = [name for name in self._columns if not math.isclose(alone[name], among[name], rel_tol=SAME)]
        if differing:
            name = differing[0]
            raise ModelFileError(f"the example alone has {name} {alone[name]!r}, in a table {among[name]!r}; expected the same number")

    def answer(self, row: Any, number: int = 0) -> Answer:
        """Score one impression: ``row_id`` if it was given, the columns of scores, and ``error``.

        A malformed row has nulls and a sentence in ``error`` that names row ``number``, column, expected and found.
        """
        if not isinstance(row, Mapping):
            found = f"row {number}: expected an object with the columns of an impression, found {type(row).__name__}"
            return self._answer({}, self._nothing, found)
        try:
            flat = self._one.features(row, number)
            return self._answer(row, self._score_one(flat.numbers, flat.texts), None)
        except MalformedRow as error:
            return self._answer(row, self._nothing, str(error))
        except Exception:  # the engine decides what can be scored
            self.by_engine += 1
            return self._together([row], number)[0]

    def answers(self, rows: Sequence[Any]) -> list[Answer]:
        """Score impressions, each answered as by `answer`; what is wrong with one never costs those beside it."""
        if len(rows) > FEW_ROWS and all(isinstance(row, dict) for row in rows):
            return self._together(rows)
        return [self.answer(row, number) for number, row in enumerate(rows)]

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Score a frame of impressions, as MLflow asks for: the columns of `answer`, ``row_id`` if the frame has it.

        Raises DataError when the request has no column of an impression at all, or one of them twice.
        """
        import pandas as pd

        given = [name for name in model_input.columns if name in self._inputs]
        twice = [name for name, count in Counter(given).items() if count > 1]
        if twice:
            raise DataError(f"the request has column {twice[0]} more than once; expected each column once")
        if not given:
            first = self._contract.inputs[0].name
            raise DataError(f"the request has no column of an impression; expected {HOUR_COLUMN} and columns such as {first}")
        values = model_input[given].to_numpy(dtype=object).tolist()
        answers = self.answers([dict(zip(given, row, strict=True)) for row in values])
        refused = any(answer[ERROR_COLUMN] is not None for answer in answers)
        columns = {name: [answer[name] for answer in answers] for name in self._columns}
        frame = pd.DataFrame(columns, index=model_input.index, dtype=object if refused else None)
        if (identifier := self._contract.identifier) in given:
            frame.insert(0, ROW_ID, pd.Series(_nullable(model_input[identifier]), index=frame.index, dtype=object))
        frame[ERROR_COLUMN] = pd.Series([answer[ERROR_COLUMN] for answer in answers], index=frame.index, dtype=object)
        return frame

    def _together(self, rows: Sequence[Mapping[str, Any]], first: int = 0) -> list[Answer]:
        """Score impressions as one table; the first of them has number ``first`` in the request."""
        given = [name for name in self._inputs if any(name in row for row in rows)]
        impressions = read_impressions({name: [row.get(name) for row in rows] for name in given}, len(rows), self._contract, first)
        problems = dict(impressions.problems)
        good = np.array([first + i not in problems for i in range(len(rows))], dtype=bool)
        numbers = first + np.flatnonzero(good)
        scores = self._scores(impressions.table if good.all() else impressions.table.filter(good), numbers, problems)
        columns = [scores[name].tolist() for name in self._columns]
        found = iter(zip(*columns, strict=True))
        return [
            self._answer(row, self._nothing, problems[number])
            if number in problems
            else self._answer(row, dict(zip(self._columns, next(found), strict=True)), None)
            for number, row in enumerate(rows, first)
        ]

    def _answer(self, row: Mapping[str, Any], scored: Mapping[str, Any], error: str | None) -> Answer:
        identifier = self._contract.identifier
        given = {ROW_ID: row[identifier]} if identifier in row else {}
        return {**given, **scored, ERROR_COLUMN: error}

    def _scores(self, table: pa.Table, rows: np.ndarray, problems: dict[int, str]) -> dict[str, np.ndarray]:
        """Scores of the rows that can be scored; the others, whose numbers ``rows`` gives, join ``problems``.

        What stops a table is looked for in its halves, so that one impression never costs those beside it.
        """
        try:
            return self._score(table)
        except Exception as error:
            if len(rows) == 1:
                problems[int(rows[0])] = f"row {rows[0]}: cannot be scored ({type(error).__name__}: {' '.join(str(error).split()):.200})"
                return {name: np.empty(0) for name in self._columns}
        half = len(rows) // 2
        parts = [self._scores(table.slice(low, high - low), rows[low:high], problems) for low, high in ((0, half), (half, len(rows)))]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._columns}

    def _score(self, table: pa.Table) -> dict[str, np.ndarray]:
        if table.num_rows == 0:
            return {name: np.empty(0) for name in self._columns}
        scores = self._models.score(self._flattener.features(table).to_pandas())
        return {name: scores[name].to_numpy() for name in self._columns}


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
