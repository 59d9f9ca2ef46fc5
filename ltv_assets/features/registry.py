"""The feature registry: ``config/features.yaml`` read into one frozen, validated tree.

What belongs here: the statistics of each column, the groups that can be switched off, the derived list of features with
name, unit and description. What does not: formulas (``statistics.py``), assembly of SQL (``sql.py``).
Next to read: ``config/features.yaml`` itself, then ``sql.py``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from ltv_assets.core.config import complaint, placed
from ltv_assets.core.contract import Contract, load_contract
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.hashing import short_hash
from ltv_assets.core.yaml_text import YamlText
from ltv_assets.features.statistics import available

_KEYWORDS = ("and", "or", "not", "case", "when", "then", "else", "end", "is", "null", "between")
_FUNCTIONS = ("abs", "coalesce", "nullif", "exp", "ln", "sqrt", "log10", "pow", "floor", "ceil", "round", "sin", "cos")
SQL_WORDS = frozenset((*_KEYWORDS, *_FUNCTIONS))
"""Functions and keywords an interaction may use besides feature names (not greatest and least: DuckDB's ignore NULL)."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")


NO_FEATURE = "an identifier says nothing about the user; it seeds draws and joins results"
"""Why no feature is made of the identifier."""


class _UnknownNames(ValueError):
    """Problems of a registry as a whole, each beginning with its key where it has one."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Feature(_Frozen):
    """One output column: its name, the group it belongs to, its unit and description."""

    name: str
    group: str
    unit: str | None
    description: str
    categorical: bool = False


class Interaction(_Frozen):
    """A row-wise combination of features, written as one SQL expression over their names."""

    sql: str = Field(min_length=1)
    unit: str
    description: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the features the expression refers to, in order of appearance."""
        words = [w for w in _IDENTIFIER.findall(self.sql) if w.lower() not in SQL_WORDS]
        return tuple(dict.fromkeys(words))


class Overlap(_Frozen):
    """Overlap of one list with another."""

    of: str
    within: str

    @property
    def name(self) -> str:
        return f"{self.of}__in_{self.within}"


class Group(_Frozen):
    """Columns that are switched on and off together, and their statistics."""

    enabled: Annotated[bool, Field(strict=False)]
    description: str
    columns: dict[str, tuple[str, ...]] = {}
    overlaps: tuple[Overlap, ...] = ()
    indicators: dict[str, tuple[str, ...]] = {}
    expressions: dict[str, Interaction] = {}

    @field_validator("columns", "indicators", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        if isinstance(value, dict):
            return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        return value

    @field_validator("overlaps", mode="before")
    @classmethod
    def _overlaps_are_tuples(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value


class Registry(_Frozen):
    """The whole registry; every name is validated against the contract and the catalogue of statistics.

    The contract is given as the context of the validation, ``{"contract": ...}``; without one it is the shipped contract.
    """

    price_tiers: Annotated[tuple[float, ...], Field(min_length=1)]
    groups: Annotated[dict[str, Group], Field(min_length=1)]
    _contract: Contract = PrivateAttr()

    @field_validator("price_tiers", mode="before")
    @classmethod
    def _tiers_are_a_tuple(cls, value: object) -> object:
        return tuple(float(v) if type(v) is int else v for v in value) if isinstance(value, list) else value

    @property
    def contract(self) -> Contract:
        """The columns the features are made of."""
        return self._contract

    @model_validator(mode="after")
    def _names_are_known(self, info: ValidationInfo) -> Registry:
        self._contract = (info.context or {}).get("contract") or load_contract()
        problems = self._problems()
        if problems:
            raise _UnknownNames(problems)
        return self

    def _problems(self) -> list[str]:
        problems: list[str] = []
        by_name = self.contract.by_name
        if not all(a < b for a, b in zip((0.0, *self.price_tiers), (*self.price_tiers, math.inf), strict=True)):
            problems.append("price_tiers: expected strictly ascending prices in USD above 0")
        for group_name, group in self.groups.items():
            where = f"groups.{group_name}"
            for column_name, statistics in group.columns.items():
                problems += _column_problems(self.contract, f"{where}.columns.{column_name}", column_name, statistics)
            for overlap in group.overlaps:
                problems += [
                    f"{where}.overlaps: {name!r} is not a list column of the contract"
                    for name in (overlap.of, overlap.within)
                    if name not in by_name or by_name[name].type != "list<string>"
                ]
            for indicator, columns in group.indicators.items():
                key = f"{where}.indicators.{indicator}"
                if not _NAME.fullmatch(indicator) or not columns:
                    problems.append(f"{key}: expected a lower-case name and at least one column")
                problems += [
                    f"{key}: {name!r} is not a non-label column of the contract" for name in columns if not _is_input(self.contract, name)
                ]
            for name, interaction in group.expressions.items():
                key = f"{where}.expressions.{name}"
                if not _NAME.fullmatch(name):
                    problems.append(f"{key}: expected a lower-case name")
                if ";" in interaction.sql or "--" in interaction.sql:
                    problems.append(f"{key}: expected one SQL expression")
                problems += [
                    f"{key}: {word!r} is neither a possible feature nor an allowed function"
                    for word in interaction.inputs
                    if not _is_statistic(self.contract, word)
                ]
        names = Counter(feature.name for feature in self._all_features(enabled_only=False))
        problems += [f"feature {name!r} is declared {count} times" for name, count in names.items() if count > 1]
        return problems

    def _all_features(self, *, enabled_only: bool) -> list[Feature]:
        features: list[Feature] = []
        for group_name, group in self.groups.items():
            if enabled_only and not group.enabled:
                continue
            for column_name, statistics in group.columns.items():
                column = self.contract.by_name.get(column_name)
                if column is None or column.is_label:
                    continue
                for statistic in statistics:
                    if (spec := available(column).get(statistic)) is None:
                        continue
                    features.append(
                        Feature(
                            name=feature_name(column_name, statistic),
                            group=group_name,
                            unit=spec.unit or column.unit,
                            description=f"{spec.description} {column.description}".strip(),
                            categorical=spec.categorical,
                        )
                    )
            for overlap in group.overlaps:
                words = f"distinct elements of {overlap.of} that are also in {overlap.within}"
                features.append(Feature(name=overlap.name, group=group_name, unit="elements", description=f"number of {words}"))
                features.append(Feature(name=f"{overlap.name}_share", group=group_name, unit="share", description=f"share of {words}"))
            for indicator, columns in group.indicators.items():
                features.append(
                    Feature(
                        name=f"missing__{indicator}",
                        group=group_name,
                        unit="0 or 1",
                        description=f"1 if all of these are missing: {', '.join(columns)}",
                    )
                )
            for name, interaction in group.expressions.items():
                features.append(Feature(name=name, group=group_name, unit=interaction.unit, description=interaction.description))
        return features

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Every feature of the enabled groups, in the order of the file: the order of the flattened columns."""
        return tuple(self._all_features(enabled_only=True))

    @property
    def source_columns(self) -> tuple[str, ...]:
        """Raw columns that contribute to an enabled feature, in the order of the contract."""
        used: set[str] = set()
        for group in self.groups.values():
            if not group.enabled:
                continue
            used.update(group.columns)
            used.update(name for overlap in group.overlaps for name in (overlap.of, overlap.within))
            used.update(name for columns in group.indicators.values() for name in columns)
            used.update(word.split("__", 1)[0] for interaction in group.expressions.values() for word in interaction.inputs)
        return tuple(name for name in self.contract.by_name if name in used)

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the flattened columns' names and values (16 hex digits)."""
        said = self.model_dump(mode="json")
        if not self.contract.is_shipped:
            said["contract"] = self.contract.fingerprint()
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return short_hash(text)


def feature_name(column: str, statistic: str) -> str:
    """Return the output name of a column's statistic: ``column__statistic``, or the column's own name for its value."""
    return column if statistic == "value" else f"{column}__{statistic}"


def _is_input(contract: Contract, name: str) -> bool:
    column = contract.by_name.get(name)
    return column is not None and not column.is_label and column.role != "identifier"


def _is_statistic(contract: Contract, name: str) -> bool:
    column, _, statistic = name.partition("__")
    if not _is_input(contract, column):
        return False
    spec = available(contract.by_name[column]).get(statistic or "value")
    return spec is not None and not spec.categorical


def _column_problems(contract: Contract, key: str, name: str, statistics: tuple[str, ...]) -> list[str]:
    column = contract.by_name.get(name)
    if column is None:
        return [f"{key}: no such column in the contract"]
    if column.is_label:
        return [f"{key}: {name!r} is a label, known only after the impression; it can never be a feature"]
    if column.role == "identifier":
        return [f"{key}: {name!r} is never a feature: {NO_FEATURE}"]
    if column.role == "time":
        return [f"{key}: use hour and weekday, the hour itself is a key"]
    known = available(column)
    if not statistics:
        return [f"{key}: expected at least one of {', '.join(known)}"]
    return [f"{key}: unknown statistic {s!r} for {column.type}; expected one of {', '.join(known)}" for s in statistics if s not in known]


def load_registry(path: Path, contract: Contract | None = None) -> Registry:
    """Read a registry file and validate it against a contract, by default the shipped one.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or names a column, statistic or key that does not exist.
    """
    try:
        source = YamlText(Path(path).read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the feature registry: {error.strerror}") from error
    tree = source.tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys price_tiers and groups, found {type(tree).__name__}")
    tree.pop("x-statistics", None)
    try:
        return Registry.model_validate(tree, context={"contract": contract})
    except ValidationError as error:
        # An unknown key comes first: it is usually the misspelled form of a key that is reported as missing.
        found = [
            line
            for item in sorted(error.errors(), key=lambda i: i["type"] != "extra_forbidden")
            for line in _complaints(source, path, item)
        ]
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise ConfigError("\n".join(found[:3]) + more) from error


def _complaints(source: YamlText, file: Path, problem: Any) -> list[str]:
    """One line for each name that does not exist, or the one line of any other problem."""
    unknown = problem.get("ctx", {}).get("error")
    if isinstance(unknown, _UnknownNames):
        keys = [text.partition(": ")[0] for text in unknown.problems]
        lines = [source.line_of(tuple(key.split("."))) for key in keys]
        return [f"{file}:{line}: {text}" if line else f"{file}: {text}" for line, text in zip(lines, unknown.problems, strict=True)]
    key = problem["loc"]
    section: type[BaseModel] = Registry if len(key) == 1 else Group if len(key) == 3 else Interaction
    known = list(section.model_fields)
    return [f"{placed(source, file, key)}: {complaint(source, key, problem, known)}"]
