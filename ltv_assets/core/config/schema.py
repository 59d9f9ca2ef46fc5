"""The configuration's schema: one frozen pydantic tree.

What belongs here: every key, its unit, range, default and meaning, documented where it is defined. What does not: files and
the environment (``load.py``), work of any kind. Next to read: ``load.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlparse
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LARGEST_INT = 2**31 - 1
"""Largest whole number that LightGBM and DuckDB take."""

FIRST_DAY, LAST_DAY = date(2000, 1, 1), date(2199, 12, 31)
"""No impression is older or newer; beyond lie the ends of the calendar, where reckoning with days fails."""

MOST_DAYS = 36_500
MOST_RANGE_DAYS = 3_660
MOST_SECONDS = 31_536_000
"""A year."""


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, not {str(value).lower()}")
    return value


def parse_day(text: str) -> date:
    """The day that a text such as 2025-10-06 names; raises ValueError for any other text and for years no impression is from."""
    try:
        day = date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else None
    except ValueError:
        day = None
    if day is None or not FIRST_DAY <= day <= LAST_DAY:
        raise ValueError(f"expected a day such as 2025-10-06, between {FIRST_DAY} and {LAST_DAY}")
    return day


def _day(value: Any) -> date:
    return parse_day(value if isinstance(value, str) else str(value))


def _known_cron(text: str) -> str:
    """The expression itself, if Dagster would schedule by it; where Dagster is not installed, nothing is scheduled."""
    try:
        # By name: the core reads the configuration too, and must not depend on Dagster.
        schedules = import_module("dagster._utils.schedules")
    except ImportError:
        return text
    try:
        valid = schedules.is_valid_cron_string(text)
    except Exception:  # whatever its parser stumbles over is no cron expression
        valid = False
    if not valid:
        raise ValueError(
            "expected a cron expression that Dagster accepts (minute 0-59, hour 0-23, day of month, month, day of week), "
            "such as '0 6 * * *'"
        )
    return text


NUMBER = BeforeValidator(_no_truth)
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False), NUMBER]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False), NUMBER]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False), NUMBER]
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_INT), NUMBER]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT), NUMBER]
PositiveDays = Annotated[int, Field(ge=1, le=MOST_DAYS), NUMBER]
Days = Annotated[int, Field(ge=0, le=MOST_DAYS), NUMBER]
PositiveSeconds = Annotated[float, Field(gt=0.0, le=MOST_SECONDS, allow_inf_nan=False), NUMBER]
Seconds = Annotated[float, Field(ge=0.0, le=MOST_SECONDS, allow_inf_nan=False), NUMBER]
Threads = Annotated[int, Field(ge=1, le=1024), NUMBER]
Trees = Annotated[int, Field(ge=1, le=100_000), NUMBER]
Day = Annotated[date, BeforeValidator(_day)]
Cron = Annotated[str, AfterValidator(_known_cron)]


class Section(BaseModel):
    """Base of every part of the tree: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_the_field(cls, value: Any) -> Any:
        """A part that is given in part keeps the rest of its own default: ``buyer_classifier: {num_leaves: 31}`` changes one number."""
        if not isinstance(value, Mapping):
            return value
        defaults = {name: field.default for name, field in cls.model_fields.items() if isinstance(field.default, Section)}
        return {
            key: {**defaults[key].model_dump(), **given} if key in defaults and isinstance(given, Mapping) else given
            for key, given in value.items()
        }


class DateRange(Section):
    """First and last day, both included."""

    first: Day = Field(description="first day, included")
    last: Day = Field(description="last day, included")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"last day {self.last} lies before first day {self.first}")
        if (self.last - self.first).days >= MOST_RANGE_DAYS:
            raise ValueError(f"{self.first} .. {self.last} are more than {MOST_RANGE_DAYS} days")
        return self

    def days(self) -> tuple[date, ...]:
        """Every day of the range, in order."""
        return tuple(self.first + timedelta(days=i) for i in range((self.last - self.first).days + 1))


class DateRanges(Section):
    """Explicit horizon; use ``dates: auto`` to take every day found under the data root."""

    train: DateRange = Field(description="days with labels")
    test: DateRange = Field(description="days to be scored for the submission")

    @model_validator(mode="after")
    def _disjoint(self) -> Self:
        if self.train.last >= self.test.first and self.test.last >= self.train.first:
            raise ValueError(f"training days {self.train.first}..{self.train.last} overlap test days {self.test.first}..{self.test.last}")
        return self


class SplitConfig(Section):
    """How much of one split's raw data is read."""

    sampling_fraction: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] = Field(
        1.0, description="share of rows kept, chosen by a hash of (seed, row_id), so the same rows whatever the order"
    )
    max_partitions: PositiveInt | None = Field(
        None, description="at most this many hourly folders of the split, earliest first; null = all"
    )


def _inside(path: Path) -> Path:
    if path == Path() or "\0" in str(path):
        raise ValueError("expected a path")
    if ".." in path.parts:
        raise ValueError(f"the path {path} leaves the project; give an absolute path, or one below the project root")
    return at_home(path)


def at_home(path: Path) -> Path:
    """The path with ``~`` and ``~user`` written out; raises ValueError for a user without a home."""
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"the path {path} begins with the home folder of a user who has none here") from None


LocalPath = Annotated[Path, AfterValidator(_inside)]


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected a time zone of the IANA database, such as UTC or Europe/Madrid") from None
    return name


TimeZone = Annotated[str, AfterValidator(_known_zone)]


FOLDER = r"^(?:\.|[A-Za-z0-9_-][A-Za-z0-9._-]*)$"


class DataConfig(Section):
    """Where the impressions are and what of them is accepted."""

    root: LocalPath = Field(Path("data"), description="folder with train/ and test/; relative paths start at the project root")
    train_folder: str = Field(
        "train", pattern=FOLDER, description="folder of the labelled days below root; . = root itself, see test_folder"
    )
    test_folder: str = Field(
        "test",
        pattern=FOLDER,
        description="folder of the unlabelled days below root; with both folders . every day stands in root, and a day without labels is "
        "to be scored",
    )
    dates: Literal["auto"] | DateRanges = Field("auto", description="auto: every day found under root; or explicit train and test ranges")
    gap_days: tuple[Day, ...] = Field((), description="training days known to be missing; any other missing day inside a window is refused")
    require_all_hours: bool = Field(False, description="true: a day with fewer than 24 hours fails; false: it is a warning")
    max_bad_file_share: Share = Field(0.5, description="a day with a larger share of unreadable files is rejected")
    max_bad_row_share: Share = Field(0.05, description="a day with a larger share of quarantined rows fails its blocking check")
    sample_submission: LocalPath | None = Field(None, description="CSV whose row order the submission follows; null = order of the files")
    train: SplitConfig = Field(SplitConfig(), description="sampling of training days")
    test: SplitConfig = Field(SplitConfig(), description="sampling of test days; a submission needs all rows")

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if (self.train_folder == ".") != (self.test_folder == "."):
            raise ValueError("train_folder and test_folder stand in one another; give both a name, or both . for days in one folder")
        if self.train_folder == self.test_folder != ".":
            raise ValueError(f"train_folder and test_folder are both {self.train_folder!r}; an hour is either labelled or not")
        return self


class WindowsConfig(Section):
    """The training windows: key D is the holdout day, the days before it train."""

    min_train_days: PositiveDays = Field(2, description="a window needs at least this many training days")
    max_train_days: PositiveDays = Field(7, description="a window trains on at most this many days before the holdout")
    embargo_days: Days = Field(0, description="days left out directly before the holdout, as in live use with immature labels")
    label_maturity_days: dict[Annotated[int, Field(ge=1, le=MOST_DAYS), NUMBER], Days] = Field(
        {},
        description="horizon in days: age in days from which its label is final; as many days as the horizon where it is not named",
    )
    lookahead_days: Annotated[int, Field(ge=0, le=3650), NUMBER] = Field(14, description="future days that exist as partition keys")

    @model_validator(mode="before")
    @classmethod
    def _one_mapping(cls, value: Any) -> Any:
        """``label_maturity_days_d7: 9`` is another way to write ``label_maturity_days: {7: 9}``."""
        if not isinstance(value, Mapping):
            return value
        single = {key: int(match[1]) for key in value if (match := re.fullmatch(r"label_maturity_days_d([0-9]{1,5})", str(key)))}
        if not single:
            return value
        rest = {key: said for key, said in value.items() if key not in single}
        return {
            **rest,
            "label_maturity_days": {**(rest.get("label_maturity_days") or {}), **{days: value[key] for key, days in single.items()}},
        }

    def maturity_days(self, horizon: int) -> int:
        """Age in days from which the label of a horizon is final."""
        return self.label_maturity_days.get(horizon, horizon)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_train_days < self.min_train_days:
            raise ValueError(f"max_train_days {self.max_train_days} is below min_train_days {self.min_train_days}")
        return self


class SamplingConfig(Section):
    """HistOS for the classifier, HHISTUS for the regressor (Aminian, Ribeiro, Gama 2025)."""

    classifier: Literal["none", "histos"] = Field("histos", description="sampling plan of the buyer classifier")
    regressor: Literal["none", "hhistus"] = Field("hhistus", description="sampling plan of the revenue regressor")
    n_bins: Annotated[int, Field(ge=1, le=254), NUMBER] = Field(
        20, description="equal-width bins of log1p(revenue), next to the dedicated bin of zero"
    )
    histos_beta: PositiveFloat = Field(3.0, description="HistOS: steepness of the repeat probability exp(-beta * count / max_count)")
    max_copies: Annotated[int, Field(ge=1, le=1000), NUMBER] = Field(1, description="HistOS: at most this many extra copies of a row")
    hhistus_beta: NonNegativeFloat = Field(0.25, description="HHISTUS: steepness of the keep probability exp(-beta * count / max_count)")
    whale_quantile: Annotated[float, Field(gt=0.5, lt=1.0), NUMBER] = Field(
        0.95,
        description="payers from this quantile of revenue on are whales: HHISTUS always keeps them, the whale classifier looks for them",
    )


class BoosterConfig(Section):
    """One LightGBM model; the number of trees comes from early stopping on later time."""

    num_leaves: Annotated[int, Field(ge=2, le=1024), NUMBER] = Field(31, description="largest number of leaves of a tree")
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] = Field(0.03, description="shrinkage of each tree")
    min_data_in_leaf: PositiveInt = Field(20, description="fewest rows in a leaf")
    feature_fraction: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] = Field(1.0, description="share of features a tree may use")
    bagging_fraction: Annotated[float, Field(gt=0.0, le=1.0), NUMBER] = Field(
        1.0, description="share of rows a tree sees, drawn anew each tree"
    )
    lambda_l2: NonNegativeFloat = Field(0.0, description="L2 penalty on leaf values")
    max_rounds: Trees = Field(400, description="largest number of trees")
    patience: PositiveInt = Field(30, description="stop after this many trees without improvement on later time")


class LinearConfig(Section):
    """Shaping of inputs and penalties of the linear learners."""

    max_one_hot: NonNegativeInt = Field(30, description="most frequent values of a categorical column that get an indicator")
    min_one_hot_rows: PositiveInt = Field(100, description="values seen in fewer rows get no indicator")
    penalties: tuple[PositiveFloat, ...] = Field(
        (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13),
        min_length=1,
        description="candidates for C of the logistic regression, chosen out of fold",
    )
    l1_ratio: Share = Field(0.5, description="share of L1 in the penalties of all three linear learners; 0 is a ridge")
    steps: bool = Field(True, description="whether thresholds of numbers that a line misses become inputs")


class ForestConfig(Section):
    """Random forest: LightGBM's rf mode."""

    trees: Trees = Field(30, description="number of trees")
    num_leaves: Annotated[int, Field(ge=2, le=1024), NUMBER] = Field(63, description="largest number of leaves of a tree")
    min_data_in_leaf: PositiveInt = Field(50, description="fewest rows in a leaf")
    bagging_fraction: Annotated[float, Field(gt=0.0, lt=1.0), NUMBER] = Field(0.4, description="share of rows each tree sees")
    feature_fraction: Annotated[float, Field(gt=0.0, lt=1.0), NUMBER] = Field(0.3, description="share of features each tree sees")


class CalibrationConfig(Section):
    """Turns the classifier's corrected log-odds into probabilities at the natural rate."""

    method: Literal["auto", "none", "sigmoid", "isotonic"] = Field(
        "auto", description="auto: sigmoid or isotonic, whichever has the lower log-loss on the time-last fold; none: prior correction only"
    )
    min_payers: PositiveInt = Field(30, description="with fewer payers among the calibration rows only the prior correction is applied")


def _off(value: Any) -> Any:
    """What a reader of YAML 1.1 makes of ``off``."""
    return "off" if value is False else value


class GatingConfig(Section):
    """Which predictions become zero, and how far a probability may go."""

    zero_rate: Annotated[Literal["match", "off"], BeforeValidator(_off)] = Field(
        "match", description="match: gate the smallest scores until the zero rate of `level` is met; off: no gate"
    )
    level: Literal["follow", "window"] = Field(
        "follow",
        description="payer rate that the gate, expected revenue and probabilities are set to: follow = of the newest days, shrunk to the "
        "window's as far as its days differ by chance; window = all days alike",
    )
    cap_share: Annotated[float, Field(gt=0.0, lt=1.0), NUMBER] = Field(
        0.002, description="share of rows in the top bin whose outcome rate caps probabilities"
    )
    cap_min_rows: PositiveInt = Field(50, description="the top bin has at least this many rows")
    cap_confidence: Annotated[float, Field(gt=0.5, lt=1.0), NUMBER] = Field(
        0.975, description="one-sided level of the upper bound that becomes the cap"
    )
    whale_precision: Share = Field(
        0.5, description="a row is a likely whale from the whale probability on at which this share of flagged rows pays"
    )


class StackerConfig(Section):
    """The LightGBM meta learner; it starts at the best non-negative blend of the components."""

    enabled: bool = Field(True, description="false: probability x log-revenue is served as it is")
    without: tuple[Literal["elastic_net", "forest", "boosting"], ...] = Field(
        (), description="base learners that are left out; those that get no weight on the time-last fold are not fitted again anyway"
    )
    booster: BoosterConfig = Field(
        BoosterConfig(
            num_leaves=6, learning_rate=0.02, min_data_in_leaf=300, lambda_l2=50.0, feature_fraction=0.7, max_rounds=150, patience=20
        ),
        description="the meta learner; its smallest leaves grow with the number of rows",
    )
    context_features: NonNegativeInt = Field(6, description="input columns, by the reference model's gain, that the meta learner also sees")


class ModelsConfig(Section):
    """Hyperparameters of every model of a window."""

    folds: Annotated[int, Field(ge=2, le=10), NUMBER] = Field(3, description="groups of consecutive periods for out-of-fold predictions")
    max_bin: Annotated[int, Field(ge=15, le=255), NUMBER] = Field(63, description="histogram bins of a feature in every booster")
    max_features: PositiveInt | None = Field(
        None,
        description="models see at most this many encoded columns, the most telling ones by gain and correlation; null = all that vary",
    )
    max_auxiliary_rows: Annotated[int, Field(ge=1000, le=LARGEST_INT), NUMBER] | None = Field(
        500_000,
        description="out-of-fold, early-stopping and linear fits use at most this many rows, drawn by a hash of (seed, row_id); "
        "null = all; final boosters always use all",
    )
    max_reference_rows: Annotated[int, Field(ge=1000, le=LARGEST_INT), NUMBER] | None = Field(
        300_000,
        description="the reference and the increments beyond the shortest horizon are fitted on at most this many rows, drawn by a hash of "
        "(seed, row_id); null = all",
    )
    zero_budget_rows: Annotated[int, Field(ge=1000, le=LARGEST_INT), NUMBER] | None = Field(
        400_000,
        description="served boosters see every payer, and of the zeros as many as make so many rows together (as many as payers at "
        "least), drawn by a hash of (seed, row_id) and weighed back; smaller windows use all rows, as drawing costs quality where payers "
        "are few; compute.max_memory_gb lowers it until all columns fit; null = all rows",
    )
    zeros_per_payer: PositiveFloat | None = Field(
        10.0,
        description="the whale classifier and the increments beyond the first horizon see every payer and so many zeros for each, "
        "drawn by a hash of (seed, row_id) and weighed back, but no fewer than 20,000 rows; null = all rows",
    )
    monotone: dict[str, Literal[-1, 1]] = Field(
        {}, description="sign of a feature's effect on log revenue by column name; the constraint stays only if later time agrees"
    )
    cap_quantile: Annotated[float, Field(gt=0.5, lt=1.0), NUMBER] = Field(
        0.999, description="quantile of revenue over all labelled rows of the window at which expected revenue is capped (cap_usd)"
    )
    refit: bool = Field(
        True, description="after evaluation, fit the served model with the holdout day included; false: serve the evaluated one"
    )
    buyer_classifier: BoosterConfig = Field(
        BoosterConfig(num_leaves=15, learning_rate=0.05, min_data_in_leaf=50, feature_fraction=0.3, lambda_l2=10.0),
        description="LightGBM classifier of revenue > 0",
    )
    whale_classifier: BoosterConfig = Field(
        BoosterConfig(
            num_leaves=7, learning_rate=0.05, min_data_in_leaf=100, feature_fraction=0.3, lambda_l2=20.0, max_rounds=150, patience=20
        ),
        description="LightGBM classifier of revenue >= whale_quantile of payers",
    )
    revenue_head: BoosterConfig = Field(
        BoosterConfig(num_leaves=7, learning_rate=0.03, min_data_in_leaf=20, feature_fraction=0.3, lambda_l2=10.0),
        description="LightGBM regression of log1p(revenue) within the shortest horizon, on payers",
    )
    increments: BoosterConfig = Field(
        BoosterConfig(
            num_leaves=15, learning_rate=0.05, min_data_in_leaf=200, feature_fraction=0.3, lambda_l2=10.0, max_rounds=200, patience=20
        ),
        description="LightGBM regressions of the log increments from each horizon to the next, on all rows",
    )
    boosting: BoosterConfig = Field(
        BoosterConfig(num_leaves=15, learning_rate=0.03, min_data_in_leaf=100, feature_fraction=0.3, lambda_l2=20.0),
        description="base learners of the stacker: boosting of log1p(revenue) from the linear score, with log link and with identity link",
    )
    forest: ForestConfig = Field(ForestConfig(), description="base learner of the stacker: random forest on log1p(revenue)")
    linear: LinearConfig = Field(LinearConfig(), description="base learners of the stacker: elastic net and logistic x elastic net")
    calibration: CalibrationConfig = Field(CalibrationConfig(), description="calibration of the buyer classifier")
    gating: GatingConfig = Field(GatingConfig(), description="cap, gate and whale rule")
    stacker: StackerConfig = Field(StackerConfig(), description="the meta learner")


class ChecksConfig(Section):
    """Bounds of the asset checks; a blocking check that fails keeps its partition away from everything downstream."""

    zero_rate_tolerance: Share = Field(0.006, description="largest |predicted - observed| zero rate on the holdout")
    rmsle_max: PositiveFloat = Field(0.60, description="largest accepted RMSLE of the shortest horizon on the holdout")
    ece_max: Share = Field(0.02, description="largest accepted expected calibration error of buyer_probability (a warning)")
    expected_revenue_ratio_min: NonNegativeFloat = Field(
        0.5, description="sum of expected revenue / sum of capped revenue (a warning below)"
    )
    expected_revenue_ratio_max: PositiveFloat = Field(2.0, description="the same ratio's upper bound (a warning above)")
    psi_warn: PositiveFloat = Field(0.25, description="population stability index from which a feature counts as drifted (a warning)")
    min_rows_per_day: PositiveInt = Field(1, description="a day with fewer flattened rows fails")
    adversarial_auc_warn: Annotated[float, Field(ge=0.5, le=1.0), NUMBER] = Field(
        0.70, description="AUC from which a model that tells a day from the days before it counts as drift (a warning)"
    )
    champion_max_age_days: Days = Field(
        7, description="days the champion's window may lie behind the newest day with mature labels (a warning)"
    )
    leak_auc_max: Annotated[float, Field(ge=0.5, le=1.0), NUMBER] = Field(
        0.85,
        description="a feature that is absent or constant on the days to be scored fails the window and their predictions if it alone "
        "tells payers from others in training with a larger AUC",
    )
    leak_exclusive_max: Share = Field(
        0.9,
        description="the same if, among the training rows where it has another value than there, non-payers are rarer than elsewhere by "
        "more than this share: 1 means that only payers have it",
    )
    forecast_coverage_min: Share = Field(
        0.5, description="smallest share of groups whose payers, and whose revenue, lie in their 80 % intervals (a warning below)"
    )
    forecast_days: PositiveDays = Field(14, description="newest observed days that the check of intervals looks at")


class EvaluationConfig(Section):
    """What is measured on the holdout day."""

    bootstrap_repeats: Annotated[int, Field(ge=50, le=10_000), NUMBER] = Field(500, description="resamples behind every 95 % interval")
    max_segments: PositiveInt = Field(12, description="largest segments reported per column; the rest is pooled as other")
    min_segment_rows: PositiveInt = Field(200, description="segments with fewer rows are pooled as other")


def _scheduler_address(text: str) -> str:
    match = re.fullmatch(r"(?:tcp|tls)://[^\s/]+:([0-9]{1,5})", text)
    if match is None or not 0 < int(match[1]) < 65_536:
        raise ValueError("expected tcp:// or tls://, a host and a port between 1 and 65535, such as tcp://10.0.0.5:8786")
    return text


Scheduler = Annotated[str, AfterValidator(_scheduler_address)]


class ComputeConfig(Section):
    """How much of the machine is used, or which other machines."""

    engine: Literal["local", "dask"] = Field(
        "local",
        description="where days are flattened and scored and the served boosters are fitted: in this process, or on Dask workers",
    )
    scheduler: Scheduler | None = Field(
        None,
        description="Dask scheduler to join, such as tcp://10.0.0.5:8786; null = start `threads` worker processes on this machine",
    )
    threads: Threads = Field(
        2,
        description="threads of DuckDB, LightGBM and linear algebra, whatever OMP_NUM_THREADS says; part of the determinism promise",
    )
    max_memory_gb: Annotated[float, Field(ge=1.0, le=1_000_000.0, allow_inf_nan=False), NUMBER] = Field(
        4.0,
        description="memory one process should stay below, in GB: windows that do not fit are read block by block and their auxiliary "
        "fits use fewer rows, fewer blocks are flattened at a time, DuckDB gets at most half",
    )
    duckdb_memory_gb: Annotated[float, Field(ge=0.01, le=1_000_000.0, allow_inf_nan=False), NUMBER] = Field(
        1.0, description="memory limit of each DuckDB connection, in GB; at most half of max_memory_gb"
    )
    chunk_rows: Annotated[int, Field(ge=100, le=LARGEST_INT), NUMBER] = Field(
        8_192, description="rows that each thread scores at a time; the result does not depend on it"
    )

    @model_validator(mode="after")
    def _joins_only_with_dask(self) -> Self:
        if self.scheduler is not None and self.engine != "dask":
            raise ValueError(f"scheduler {self.scheduler} is given but engine is {self.engine}; set engine: dask, or scheduler: null")
        return self

    @property
    def duckdb_limit(self) -> str:
        """Memory limit of each DuckDB connection as its setting ``memory_limit`` takes it, such as ``2.0GB``."""
        return f"{min(self.duckdb_memory_gb, self.max_memory_gb / 2)}GB"


def _lake_url(text: str) -> str:
    try:
        parsed = urlparse(text)
        usable = re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s]+", text) is not None and parsed.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected a URL such as s3://bucket/ltv or file:///mnt/lake")
    return text


LakeUrl = Annotated[str, AfterValidator(_lake_url)]


class WarehouseConfig(Section):
    """Where results go."""

    root: LocalPath = Field(
        Path("warehouse"), description="folder of everything that is produced; relative paths start at the project root"
    )
    lake: LakeUrl | None = Field(
        None,
        description="URL of any file system fsspec knows, such as s3://bucket/ltv: `ltv run` fetches from it what the warehouse lacks "
        "and sends to it what is new; null = the warehouse stands alone",
    )
    lock_timeout_seconds: PositiveSeconds = Field(60.0, description="longest wait for the catalogue's lock")


class AutomationConfig(Section):
    """When the graph moves by itself; every sensor and schedule is off until somebody switches it on."""

    allow_missing_hours: Annotated[int, Field(ge=0, le=23), NUMBER] = Field(
        0, description="a day counts as landed with at most this many of its 24 hours missing"
    )
    settle_seconds: Seconds = Field(60.0, description="a day counts as landed when its files were left alone this long, in seconds")
    windows_back: Days = Field(
        3, description="next to the newest window, windows at most this many days older are brought up to date; 0 = none"
    )
    sensor_seconds: Annotated[int, Field(ge=1, le=MOST_SECONDS), NUMBER] = Field(
        30, description="shortest time between two looks of a sensor, in seconds"
    )
    daily_prediction: Cron = Field("0 6 * * *", description="cron expression: score the days without labels that are not fresh")
    weekly_retraining: Cron = Field("0 3 * * 1", description="cron expression: train the newest window, whatever the figures say")
    daily_health: Cron = Field("0 7 * * *", description="cron expression: run the checks that look at the warehouse as a whole")
    timezone: TimeZone = Field("UTC", description="time zone of the cron expressions, such as Europe/Madrid")
    retrain_rmsle_max: PositiveFloat = Field(
        0.60, description="the champion's RMSLE on the newest evaluated day above which retraining is asked for"
    )
    retrain_zero_rate_gap: Share = Field(
        0.02,
        description="|zero rate of new predictions - zero rate of the labels of the champion's holdout| that asks for retraining; "
        "watched only while models.gating.zero_rate is match",
    )
    retrain_score_psi: PositiveFloat = Field(
        0.25, description="population stability index of scores, holdout against new predictions, that asks for retraining"
    )
    retrain_forecast_coverage: Share | None = Field(
        None,
        description="share of groups whose payers lie in the 80 % intervals of the champion's forecasts below which retraining is asked "
        "for, over the newest checks.forecast_days observed days; null: forecasts are no reason",
    )


class RetentionConfig(Section):
    """What `ltv gc` keeps; the champion, the champion before it and what both were made from are always kept."""

    windows: PositiveInt = Field(14, description="newest windows whose models, metrics and tracking records are kept")
    days: PositiveDays = Field(
        60, description="flattened days, inventories and predictions are kept this many days back from the newest day"
    )
    submissions: PositiveInt = Field(3, description="newest submissions that are kept, next to the configured one")


class TrackingConfig(Section):
    """MLflow; `MLFLOW_TRACKING_URI` replaces the default store inside the warehouse."""

    enabled: bool = Field(True, description="false: nothing is logged to MLflow")
    experiment: str = Field("ltv", min_length=1, description="experiment that holds one run per window")
    registered_model: str = Field("ltv", min_length=1, description="name of the registered model")
    timeout_seconds: PositiveSeconds = Field(2.0, description="longest wait for an answer when the server is probed")
    patience_seconds: Seconds = Field(30.0, description="longest time, in all, that a run spends on deliveries to a server")


class ServingConfig(Section):
    """`ltv serve`: the champion behind HTTP requests. Bounds hold for each process."""

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; others than this machine's own need a token or a proxy")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 chooses a free one")
    workers: PositiveInt = Field(1, description="processes that answer; one for each core that is to be used")
    max_body_mb: PositiveFloat = Field(16.0, description="largest body of a request, MiB; more is refused with 413")
    max_rows: PositiveInt = Field(5000, description="most impressions in a request; more are refused with 413")
    max_concurrent: PositiveInt = Field(64, description="most requests that are worked on at once; more are refused with 429")
    max_connections: PositiveInt = Field(1000, description="most open connections; more are refused with 503")
    max_buffer_mb: PositiveFloat = Field(128.0, description="most memory of bodies that are still arriving, MiB; more are refused with 429")
    timeout_seconds: PositiveSeconds = Field(10.0, description="longest time for an answer once the body is there; 504 after it")
    read_seconds: PositiveSeconds = Field(10.0, description="longest time that a request's head, and then its body, may take to arrive")
    keep_alive_seconds: PositiveSeconds = Field(30.0, description="how long a connection without a request stays open")
    stop_seconds: PositiveSeconds = Field(30.0, description="longest time that requests in flight have to finish when the server stops")
    poll_seconds: PositiveSeconds = Field(1.0, description="how often the champion's record is read")


class Config(Section):
    """The whole tree. ``config.yaml`` describes the full horizon, ``config_test.yaml`` a simulated run of a minute or two."""

    seed: NonNegativeInt = Field(0, description="seeds every draw and every booster")
    features: LocalPath = Field(Path("config/features.yaml"), description="registry of features; relative paths start at the project root")
    contract: LocalPath = Field(
        Path("config/contract.yaml"), description="the data contract: columns, labels, folders; relative paths start at the project root"
    )
    data: DataConfig = Field(DataConfig())
    windows: WindowsConfig = Field(WindowsConfig())
    sampling: SamplingConfig = Field(SamplingConfig())
    models: ModelsConfig = Field(ModelsConfig())
    evaluation: EvaluationConfig = Field(EvaluationConfig())
    checks: ChecksConfig = Field(ChecksConfig())
    compute: ComputeConfig = Field(ComputeConfig())
    warehouse: WarehouseConfig = Field(WarehouseConfig())
    tracking: TrackingConfig = Field(TrackingConfig())
    automation: AutomationConfig = Field(AutomationConfig())
    retention: RetentionConfig = Field(RetentionConfig())
    serving: ServingConfig = Field(ServingConfig())

    @model_validator(mode="after")
    def _stops_early_on_one_machine(self) -> Self:
        if self.compute.engine == "dask" and self.models.max_auxiliary_rows is None:
            raise ValueError(
                "compute.engine: dask with models.max_auxiliary_rows: null would stop early on every row, and early stopping is not "
                "possible on Dask workers; give max_auxiliary_rows a number, so that trees are counted on a local sample of that size"
            )
        return self


def subsections(annotation: Any) -> list[type[BaseModel]]:
    """The sections among the types of a field."""
    return [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type) and issubclass(a, Section)]


def walk_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, description) of every leaf of the tree, for the documentation and for tests."""
    for name, field in section.model_fields.items():
        kinds = subsections(field.annotation)
        if kinds:
            for kind in kinds:
                yield from walk_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.description or ""
