"""The data contract: what a row of the raw files is, read from ``config/contract.yaml`` into one frozen, checked tree.

What belongs here: the columns with their types and meanings, and their roles: what tells rows apart, when a row happened, what
is known only afterwards, which columns hold a row's own keys, what figures are broken down by. What does not: SQL, thresholds,
anything that reads data. Code asks by role and never names a column. Next to read: the file itself, then
``features/registry.py`` (which statistics each column yields).

The physical type of a column may differ between files (a map may arrive as a list of structs or as JSON text, an int where a
double was); the *logical* type here is what every reader turns it into.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from ltv_assets.core.config.load import PROJECT_ROOT, complaint, dotted, placed
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.hashing import json_hash
from ltv_assets.core.time_layout import TimeLayout, layout_problem, time_layout
from ltv_assets.core.yaml_text import YamlText

if TYPE_CHECKING:
    from ltv_assets.core.config.schema import Config

Role = Literal["identifier", "time", "label", "feature"]

LogicalType = Literal[
    "int32",
    "int64",
    "double",
    "string",
    "list<string>",
    "map<string,double>",
    "map<string,int64>",
    "map<string,map<string,int64>>",
]

Meaning = Literal["identifier", "flag", "count", "amount", "category", "number", "timestamp", "histogram"]

SHIPPED = PROJECT_ROOT / "config" / "contract.yaml"
"""The contract that is in force where a configuration names no other, and where there is no configuration."""

ROW_ID, HOUR = "row_id", "datetime"
"""What the identifier and the hour of a row are called in every relation of the warehouse, whatever files call them."""

HOUR_DOMAIN = "hour"
"""The kind of keys that are hours of a day: 7, 07 and 7.0 are one key."""

SCORE_COLUMNS = ("buyer_probability", "log_revenue_if_buyer", "predicted_zero")
MOST_HORIZONS = 12
_NUMBERS = ("double", "int64", "int32")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_STEPS = tuple("raw flat finite valid sum min max count mass own own_flat entropy future distant ancient label".split())  # noqa: SIM905
_TAKEN = frozenset(("hour_start", "hour_key", "day", "file_index", "file_row_number"))
SQL_KEYWORDS = frozenset(
    "all analyse analyze and anti any array as asc asof asymmetric at authorization binary both by case cast check collate collation "  # noqa: SIM905
    "column columns concurrently constraint create cross default deferrable desc describe distinct do else end except false fetch for "
    "foreign freeze from full generated glob group having ilike in initially inner intersect into is isnull join lambda lateral leading "
    "left like limit map natural not notnull null offset on only or order outer overlaps pivot pivot_longer pivot_wider placing "
    "positional primary qualify references returning right select semi show similar some struct summarize symmetric table tablesample "
    "then to trailing true try_cast tuple union unique unpack unpivot using variadic verbose when where window with".split()
)
"""Words the SQL engine keeps for itself; no column can have one as its name."""


class _Problems(ValueError):
    """Problems of a contract as a whole, each with the key it belongs to."""

    def __init__(self, problems: list[tuple[tuple[str | int, ...], str]]) -> None:
        super().__init__("; ".join(f"{dotted(key)}: {text}" for key, text in problems))
        self.problems = problems


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @field_validator("*", mode="before")
    @classmethod
    def _lists_are_tuples(cls, value: object) -> object:
        return tuple(tuple(v) if isinstance(v, list) else v for v in value) if isinstance(value, list) else value


class Column(_Frozen):
    """One column of the raw files.

    ``missing_rate`` is the share of NULL rows observed in real files; ``keyed_by`` says what the keys of a map (the outer keys of
    a nested map) or the elements of a list are; ``meaning`` says how its values are to be read.
    """

    name: str = Field(description="the name features, reports and relations use")
    role: Role = Field("feature", description="what the column is")
    group: str | None = Field(None, description="heading of the data dictionary it stands under")
    type: LogicalType = Field(description="logical type, whatever type a file has")
    meaning: Meaning = Field(description="how its values are used")
    unit: str | None = Field(None, description="unit of its values")
    keyed_by: str | None = Field(None, description="what the keys of a map or the elements of a list are")
    own_key: str | None = Field(None, description="the column with the row's own key; null = as `own_keys` says for keyed_by")
    cycle: Annotated[int, Field(ge=2)] | None = Field(None, description="length of the cycle of a number that begins again")
    calendar: bool = Field(False, description="it moves with the calendar by itself, which is no drift")
    missing_rate: Annotated[float, Field(ge=0.0, le=1.0)] = Field(0.0, description="share of missing values seen in real files")
    source: str | None = Field(None, min_length=1, description="name of the column in files; null = its name")
    example: str | None = Field(None, description="a value as a request may have it; null = an invented one")
    description: str = Field("", description="what it says, in a line")

    @property
    def is_nested(self) -> bool:
        """True for maps and lists, which carry more than one value a row."""
        return self.type.startswith(("map", "list"))

    @property
    def is_label(self) -> bool:
        """True for columns known only after the impression; none of them may ever become a feature."""
        return self.role == "label"

    @property
    def is_key(self) -> bool:
        """True for the identifier and the time of a row."""
        return self.role in ("identifier", "time")

    @property
    def in_files(self) -> str:
        """The name files have for it."""
        return self.source or self.name


class Time(_Frozen):
    """When a row happened: by the name of its folder, or by a column of its file."""

    layout: str | None = Field(description="names of the folders, in the words of strftime; null: files are not divided by time")
    column: str | None = Field(None, description="column of moments where layout is null; otherwise the column the folder's name fills")

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        if self.layout is None:
            if self.column is None:
                raise _Problems([(("column",), "missing; where layout is null, name the column that holds the moment of a row")])
        elif (problem := layout_problem(self.layout)) is not None:
            raise _Problems([(("layout",), problem)])
        return self


class Labels(_Frozen):
    """What is known only afterwards."""

    payer: str | None = Field(None, description="flag of those who paid; null where there is none")
    revenue: Annotated[dict[int, str], Field(min_length=1, max_length=MOST_HORIZONS)] = Field(
        description="horizon in days: column of the revenue within it, shortest first; the first is the target"
    )
    kept: tuple[str, ...] = Field((), description="labels stored next to the features")
    others: tuple[str, ...] = Field((), description="labels that are never read")


class Encodings(_Frozen):
    """What a window learns about categories beyond each by itself."""

    pairs: tuple[tuple[str, str], ...] = Field((), description="categories that are encoded together")
    ranked_within: tuple[str, ...] = Field((), description="categories within which the ranked numbers are compared")
    ranked: tuple[str, ...] = Field((), description="features that are ranked within those categories, such as past spend")


@dataclass(frozen=True, slots=True)
class Scores:
    """What the columns of scores are called: revenue within some horizons, in days, shortest first, and the gated ``target``."""

    horizons: tuple[int, ...]
    target: str

    @property
    def names(self) -> tuple[str, ...]:
        """``d7`` for each horizon."""
        return tuple(f"d{days}" for days in self.horizons)

    @property
    def within(self) -> str:
        """The shortest horizon in words."""
        days = self.horizons[0]
        return {1: "one day", 7: "seven days"}.get(days, f"{days} days")

    @property
    def ltv(self) -> tuple[str, ...]:
        """The RMSLE-optimal columns by horizon, USD."""
        return tuple(f"ltv_d{days}" for days in self.horizons)

    @property
    def expected(self) -> str:
        """Expected capped revenue within the shortest horizon, USD: money that adds up."""
        return f"expected_revenue_d{self.horizons[0]}"

    @property
    def observed(self) -> str:
        """What came in within the shortest horizon, USD, as it stands beside the scores of a holdout: no score has this name."""
        name = f"revenue_d{self.horizons[0]}"
        return name if name != self.target else f"{name}_observed"

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column of scores, in order."""
        first, *longer = self.ltv
        return ("buyer_probability", "log_revenue_if_buyer", first, self.expected, *longer, "predicted_zero", self.target)

    def violations(self) -> tuple[str, ...]:
        """SQL conditions that hold where a longer horizon is below the one before."""
        return tuple(f"{shorter} > {longer}" for shorter, longer in pairwise(self.ltv))


class Contract(_Frozen):
    """The whole contract; names are checked against one another when it is read."""

    name: str = Field(min_length=1, description="what the table is called in messages")
    identifier: str = Field(description="column that tells rows apart")
    time: Time
    labels: Labels
    own_keys: dict[str, str] = Field({}, description="kind of keys of maps and lists: column with the row's own key of that kind")
    segments: tuple[str, ...] = Field((), description="columns that figures are broken down by")
    cold_start: str | None = Field(None, description="column whose values that training never saw are a segment of their own")
    encodings: Encodings = Encodings()
    groups: dict[str, str] = Field({}, description="headings of the data dictionary")
    columns: Annotated[tuple[Column, ...], Field(min_length=1)]
    _places: dict[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        # One kind after the other: a column without its role would be complained of wherever it is named.
        problems = _column_problems(self) or _role_problems(self) or _name_problems(self)
        if problems:
            raise _Problems(problems)
        own = {c.name: self.own_keys.get(c.keyed_by) for c in self.columns if c.keyed_by is not None and c.own_key is None}
        filled = tuple(c.model_copy(update={"own_key": own[c.name]}) if own.get(c.name) else c for c in self.columns)
        object.__setattr__(self, "columns", filled)
        return self

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """Every column by its name, in the order of the file."""
        return {c.name: c for c in self.columns}

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Every column that is known only afterwards."""
        return tuple(c.name for c in self.columns if c.is_label)

    @cached_property
    def stored_labels(self) -> tuple[str, ...]:
        """Labels that stand next to the features in the warehouse, in the order of the columns."""
        stored = {self.labels.payer, *self.labels.revenue.values(), *self.labels.kept}
        return tuple(name for name in self.label_names if name in stored)

    @cached_property
    def inputs(self) -> tuple[Column, ...]:
        """Columns a row is scored from: neither keys nor labels."""
        return tuple(c for c in self.columns if not c.is_label and not c.is_key)

    @property
    def horizons(self) -> tuple[int, ...]:
        """Days within which revenue is counted, shortest first."""
        return tuple(self.labels.revenue)

    @property
    def revenue(self) -> tuple[str, ...]:
        """Revenue labels by horizon, shortest first."""
        return tuple(self.labels.revenue.values())

    @property
    def target(self) -> str:
        """Revenue within the shortest horizon: what is predicted, and the submission's column."""
        return self.revenue[0]

    @cached_property
    def scores(self) -> Scores:
        """What is predicted, by the names of its columns."""
        return Scores(self.horizons, self.target)

    @property
    def payer(self) -> str | None:
        """Flag of those who paid, if there is one; the revenue decides."""
        return self.labels.payer

    @property
    def layout(self) -> TimeLayout | None:
        """How folders are named; None where files are not divided by time."""
        return time_layout(self.time.layout) if self.time.layout is not None else None

    @property
    def has_hours(self) -> bool:
        """Whether the hour of a row is known, not only its day."""
        return self.layout is None or self.layout.has_hours

    @property
    def cold_start_segment(self) -> str:
        """What the segment of values that training never saw is called, after the last word of their column."""
        return f"cold_{(self.cold_start or '').rpartition('_')[2]}"

    @property
    def hour_key(self) -> str | None:
        """The column with the row's own hour of the day, if maps are keyed by hours."""
        return self.own_keys.get(HOUR_DOMAIN)

    @cached_property
    def own_key_columns(self) -> tuple[str, ...]:
        """Columns that hold a row's own keys."""
        return tuple(dict.fromkeys((*self.own_keys.values(), *(c.own_key for c in self.columns if c.own_key is not None))))

    @cached_property
    def calendar_columns(self) -> frozenset[str]:
        """Columns that differ between any two days by themselves."""
        return frozenset(c.name for c in self.columns if c.calendar)

    def place(self, column: str) -> str:
        """``file:line: key`` of a column's declaration, as messages name it."""
        return self._places.get(column, f"the contract of {self.name}")

    def required(self, labelled: bool) -> tuple[str, ...]:
        """Columns without which no row of a file can be used."""
        moments = (self.time.column,) if self.time.layout is None else ()
        labels = (self.target, *([self.payer] if self.payer is not None else [])) if labelled else ()
        return (self.identifier, *(m for m in moments if m is not None), *labels)

    @cached_property
    def is_shipped(self) -> bool:
        """Whether it says what the contract said when it was still part of the code: days flattened then are as valid now."""
        return self.fingerprint() == SHIPPED_FINGERPRINT

    def part_beyond_shipped(self, part: Literal["segments", "encodings"]) -> str | None:
        """Hash of what figures are broken down by, or of what windows learn of categories; None if it is what the code used to say."""
        said = [self.segments, self.cold_start] if part == "segments" else self.encodings.model_dump(mode="json")
        found = json_hash(said)
        return None if found == SHIPPED_PARTS[part] else found

    def fingerprint(self) -> str:
        """Hash of everything that decides what is read and flattened (16 hex digits); segments and headings do not."""
        left_out = {"name": True, "segments": True, "cold_start": True, "groups": True, "encodings": True}
        columns = {"columns": {"__all__": {"missing_rate", "group", "calendar", "example"}}}
        return json_hash(self.model_dump(mode="json", exclude={**left_out, **columns}, exclude_defaults=True))


SHIPPED_FINGERPRINT = "10dae8e5aea10327"
SHIPPED_PARTS = {"segments": "83770b70e80bf6c6", "encodings": "aaa3eef127a22fae"}


def _column_problems(contract: Contract) -> list[tuple[tuple[str | int, ...], str]]:
    """Names and types of columns, each by itself and next to the others."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    counts = Counter(c.name for c in contract.columns)
    spelled = Counter(c.in_files.casefold() for c in contract.columns)
    for place, column in enumerate(contract.columns):
        key: tuple[str | int, ...] = ("columns", place, "name")
        name = column.name
        rename = f"rename it here and say how files call it: {{name: {name.lower()}_value, source: {name}}}"
        if counts[name] > 1 and name in (c.name for c in contract.columns[:place]):
            found.append((key, f"column {name} is declared twice; keep one of them"))
        elif not _NAME.fullmatch(name) or "__" in name:
            found.append((key, f"expected lower-case letters, digits and single underscores, found {name!r}; {rename}"))
        elif name in SQL_KEYWORDS:
            found.append((key, f"{name!r} is a word of SQL; {rename}"))
        elif name in _TAKEN or (name == ROW_ID and name != contract.identifier) or (name == HOUR and name != contract.time.column):
            found.append((key, f"{name!r} is a name the warehouse uses for something else; {rename}"))
        elif any(name.startswith(f"{step}_") and name.removeprefix(f"{step}_") in counts for step in _STEPS):
            found.append((key, f"{name!r} is what a step of another column's query is called; {rename}"))
        elif spelled[column.in_files.casefold()] > 1 and counts[name] == 1:
            found.append((("columns", place, "source"), f"two columns are read from {column.in_files!r}; keep one of them"))
        if column.is_nested and column.keyed_by is None:
            found.append((("columns", place, "keyed_by"), f"missing; say what the keys of {name} are, such as keyed_by: category"))
        if column.keyed_by is not None and not column.is_nested:
            found.append((("columns", place, "keyed_by"), f"{name} is a {column.type}; only maps and lists have keys, remove it"))
        if column.cycle is not None and (column.is_nested or column.meaning != "number"):
            found.append((("columns", place, "cycle"), f"{name}: only a number has a cycle; remove it, or give the column meaning: number"))
    return found


def _role_problems(contract: Contract) -> list[tuple[tuple[str | int, ...], str]]:
    """Roles of columns against the sections that name them."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    labels = contract.labels
    where: dict[str, tuple[str | int, ...]] = {}
    named: list[tuple[tuple[str | int, ...], str]] = [
        *([(("labels", "payer"), labels.payer)] if labels.payer is not None else []),
        *((("labels", "revenue", days), name) for days, name in labels.revenue.items()),
        *((("labels", "kept", i), name) for i, name in enumerate(labels.kept)),
        *((("labels", "others", i), name) for i, name in enumerate(labels.others)),
    ]
    roles = {c.name: c.role for c in contract.columns}
    for key, name in named:
        if name in where:
            found.append((key, f"{name} stands also under {dotted(where[name])}; keep one of them"))
        elif roles.get(name) not in (None, "label"):
            found.append(
                (key, f"column {name} has role {roles[name]}, so it would be {_USED[roles[name]]}; give it role: label, or remove it here")
            )
        where.setdefault(name, key)
    horizons = list(labels.revenue)
    if any(days < 1 or days > 3650 for days in horizons):
        found.append((("labels", "revenue"), f"expected horizons of 1 to 3650 days, found {', '.join(map(str, horizons))}"))
    elif horizons != sorted(horizons):
        shown = ", ".join(map(str, horizons))
        found.append((("labels", "revenue"), f"expected the shortest horizon first, found {shown}; the first is the one that is predicted"))
    for place, column in enumerate(contract.columns):
        key = ("columns", place, "role")
        if column.role == "identifier" and column.name != contract.identifier:
            found.append(
                (key, f"{column.name} is a second identifier next to {contract.identifier}; give one of them role: feature, or remove it")
            )
        if column.role == "time" and column.name != contract.time.column:
            found.append((key, f"{column.name} has role time, but time.column is {contract.time.column}; name one column in both places"))
        if column.role == "label" and column.name not in where:
            found.append((key, f"label {column.name} stands nowhere under labels; add it to labels.others, or say which label it is"))
    return found


_USED = {"feature": "a feature", "identifier": "the identifier", "time": "the time"}


def _name_problems(contract: Contract) -> list[tuple[tuple[str | int, ...], str]]:
    """Names in other sections that are no columns, or columns of the wrong kind."""
    found: list[tuple[tuple[str | int, ...], str]] = []
    columns = {c.name: c for c in contract.columns}

    def require(key: tuple[str | int, ...], name: str, role: str | None = None, types: tuple[str, ...] = ()) -> None:
        column = columns.get(name)
        if column is None:
            found.append((key, f"no column {name!r} is declared under columns; declare it, or correct the name"))
        elif role is not None and column.role != role:
            found.append((key, f"column {name} has role {column.role}, expected {role}; correct one of the two"))
        elif types and column.type not in types:
            found.append((key, f"column {name} is a {column.type}, expected {' or '.join(types)}"))

    require(("identifier",), contract.identifier, "identifier")
    if contract.time.column is not None:
        require(("time", "column"), contract.time.column, "time")
    labels = contract.labels
    if labels.payer is not None:
        require(("labels", "payer"), labels.payer, types=_NUMBERS)
    for days, name in labels.revenue.items():
        require(("labels", "revenue", days), name, types=_NUMBERS)
    for section, names in (("kept", labels.kept), ("others", labels.others)):
        for place, name in enumerate(names):
            require(("labels", section, place), name, types=_NUMBERS if section == "kept" else ())
    for domain, name in contract.own_keys.items():
        types = ("string", "int32", "int64", "double") if domain == HOUR_DOMAIN else ("string",)
        require(("own_keys", domain), name, "feature", types)
    for place, name in enumerate(contract.segments):
        require(("segments", place), name, "feature", ("string",))
    if contract.cold_start is not None:
        require(("cold_start",), contract.cold_start, "feature", ("string",))
    for place, pair in enumerate(contract.encodings.pairs):
        for name in pair:
            require(("encodings", "pairs", place), name, "feature", ("string",))
    for place, name in enumerate(contract.encodings.ranked_within):
        require(("encodings", "ranked_within", place), name, "feature", ("string",))
    for place, name in enumerate(contract.encodings.ranked):
        require(("encodings", "ranked", place), name.partition("__")[0], "feature")
    for place, column in enumerate(contract.columns):
        if column.own_key is not None:
            require(("columns", place, "own_key"), column.own_key, "feature", ("string",))
        if column.group is not None and column.group not in contract.groups:
            close = ", ".join(contract.groups) or "none"
            found.append(
                (("columns", place, "group"), f"no heading {column.group!r} under groups (there is {close}); add it, or leave it out")
            )
    taken = {
        ROW_ID,
        HOUR,
        "day",
        *SCORE_COLUMNS,
        *(f"ltv_d{h}" for h in labels.revenue),
        *(f"expected_revenue_d{h}" for h in labels.revenue),
    }
    for name in dict.fromkeys((*labels.revenue.values(), *labels.kept, *([labels.payer] if labels.payer else []))):
        if name in taken:
            found.append(
                (("columns",), f"label {name} has the name of a column of predictions; rename it: {{name: {name}_label, source: {name}}}")
            )
    return found


def parse_contract(text: str, file: Path) -> Contract:
    """Parse a contract; ``file`` is only named in messages.

    Raises ConfigError with one line for each problem: file, line, key, what was expected and found, and the remedy.
    """
    source = YamlText(text, file, whole_numbers=True)
    if not isinstance(source.tree, Mapping):
        raise ConfigError(f"{file}:1: expected a mapping with the keys name, identifier, time, labels and columns, found nothing of it")
    try:
        contract = Contract.model_validate(source.tree)
    except ValidationError as error:
        items = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        lines = list(dict.fromkeys(line for item in items for line in _complaints(source, file, item)))
        more = f" (and {len(lines) - 5} more)" if len(lines) > 5 else ""
        raise ConfigError("\n".join(lines[:5]) + more) from None
    contract._places.update({c.name: placed(source, file, ("columns", place, "name")) for place, c in enumerate(contract.columns)})
    return contract


def _complaints(source: YamlText, file: Path, problem: Any) -> list[str]:
    known = problem.get("ctx", {}).get("error")
    above = tuple(part for part in problem["loc"] if part != "[key]")
    if isinstance(known, _Problems):
        return [f"{placed(source, file, (*above, *key))}: {text}" for key, text in known.problems]
    section: type[BaseModel] = Contract
    for part in above[:-1]:
        section = _SECTIONS.get(str(part), section)
    return [f"{placed(source, file, above)}: {complaint(source, above, problem, list(section.model_fields))}"]


_SECTIONS: dict[str, type[BaseModel]] = {"time": Time, "labels": Labels, "encodings": Encodings, "columns": Column}


@lru_cache(maxsize=8)
def _read(path: Path, mtime_ns: int) -> Contract:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the contract: {error.strerror}") from None
    return parse_contract(text, path)


def load_contract(path: Path = SHIPPED) -> Contract:
    """The contract in a file, by default the shipped one; read once as long as the file does not change.

    Raises ConfigError if it cannot be read or disagrees with itself.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the contract: {error.strerror}; set `contract` in the configuration to a file such as "
            "config/contract.yaml"
        ) from None
    return _read(path, changed)


def contract_of(config: Config) -> Contract:
    """The contract of a configuration. Raises ConfigError if it cannot be read or disagrees with itself."""
    return load_contract(config.contract if config.contract.is_absolute() else PROJECT_ROOT / config.contract)
