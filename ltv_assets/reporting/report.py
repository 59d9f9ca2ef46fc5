"""What people read of a window: ``report.html`` and, for a champion, ``model_card.md``. Both are gathered from the warehouse.

What belongs here: which figures, tables and sentences a reader gets, and publishing them beside the window. What does not:
how a document looks (``pictures/document.py``), drawing (``pictures/``), formulas. A document is made from what is
published, never from memory, so it can be written again at any time and has the same bytes then. Nothing depends on it: it
is written after its window and no partition becomes stale by it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ltv_assets import __version__
from ltv_assets.core.asset_specs import CODE_VERSIONS
from ltv_assets.core.errors import LtvError, StaleError
from ltv_assets.ingestion.calendar import parse_day
from ltv_assets.modeling.evaluation.segments import ALL, HEADLINE, METRICS
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.model_store import read_evaluated
from ltv_assets.reporting.document import Block, Document, Figure, Picture, Points, Section, Table, to_html, to_markdown
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import Champion, read_champion
from ltv_assets.storage.manifest import Manifest

REPORT_FILE = "report.html"
CARD_FILE = "model_card.md"
ABLATION_FILE = "ablation.csv"
DOCUMENT_VERSION = "1"
WORST_SEGMENTS = 12
TOP_FEATURES = 15
MAX_REMARKS = 12

FINAL_SCORE: Mapping[str, str] = {
    "meta": "a LightGBM meta learner over all components",
    "blend": "a linear blend of the components",
    "component": "the component {} alone, because no combination was better",
}
ABLATION_HEADER = (
    "variant",
    "RMSLE (log USD)",
    "95 % interval",
    "minus reference",
    "95 % interval of the difference",
    "RMSLE gated",
    "AUC",
    "ECE",
    "expected / capped revenue",
)


# ------------------------------------------------------------------------------------------------------------ publishing


def write_report(project: Project, key: str, pictures: Mapping[str, bytes] | None = None) -> Path:
    """Write the report of an evaluated window into the warehouse and return its path.

    ``pictures`` of its holdout by file name; without them those of the former report are used again, and drawn anew where
    there is none of this evaluation. Raises StaleError if the window was never evaluated.
    """
    warehouse = project.warehouse
    metrics = warehouse.require("holdout_metrics", key, f"run `ltv run --window {key}`")
    drawn = dict(pictures) if pictures is not None else _pictures_again(project, key, metrics)
    told = WindowFacts(project, key)
    inputs = {f"holdout_metrics/{key}": metrics.fingerprint}
    if told.ablation is not None:
        inputs[f"ablation/{key}"] = warehouse.fingerprint("ablation", key) or ""

    def fill(folder: Path) -> dict[str, int | None]:
        (folder / REPORT_FILE).write_bytes(to_html(report_document(told, drawn)))
        for name, png in drawn.items():
            (folder / name).write_bytes(png)
        return {REPORT_FILE: None, **dict.fromkeys(drawn)}

    config = project.lineage().config_hash("holdout_metrics", key)
    warehouse.write("report", key, fill, code_version=DOCUMENT_VERSION, config=config, inputs=inputs)
    return warehouse.folder("report", key) / REPORT_FILE


def _pictures_again(project: Project, key: str, metrics: Manifest) -> dict[str, bytes]:
    known = project.warehouse.manifest("report", key)
    if known is not None and known.inputs.get(f"holdout_metrics/{key}") == metrics.fingerprint:
        return {name: data for name, data in project.warehouse.artifacts("report", key).items() if name.endswith(".png")}
    from ltv_assets.training.evaluation import evaluate_window, holdout_pictures

    return holdout_pictures(evaluate_window(project, key))


def write_card(project: Project, champion: Champion) -> Path:
    """Write the model card of a champion and return its path. Raises StaleError if its window is gone."""
    warehouse, key = project.warehouse, champion.window
    metrics = warehouse.require("holdout_metrics", key, f"run `ltv run --window {key}`")

    def fill(folder: Path) -> dict[str, int | None]:
        (folder / CARD_FILE).write_bytes(to_markdown(card_document(WindowFacts(project, key), champion)))
        return {CARD_FILE: None}

    inputs = {f"holdout_metrics/{key}": metrics.fingerprint, f"served_model/{key}": champion.fingerprint}
    config = project.lineage().config_hash("served_model", key)
    warehouse.write("model_card", key, fill, code_version=DOCUMENT_VERSION, config=config, inputs=inputs)
    return warehouse.folder("model_card", key) / CARD_FILE


def describe_champion(project: Project) -> str | None:
    """Write the card of the champion of record; returns a problem or None, for a description must not stop a promotion."""
    try:
        champion = read_champion(project.warehouse)
        if champion is not None:
            write_card(project, champion)
    except (LtvError, OSError) as error:
        return f"the model card could not be written: {error}"
    return None


def complete_documents(project: Project, key: str) -> list[str]:
    """Write what a killed run left out: the report of an evaluated window, the champion's card. Returns problems instead of raising."""
    warehouse, problems = project.warehouse, []
    try:
        metrics, report = warehouse.manifest("holdout_metrics", key), warehouse.manifest("report", key)
        if metrics is not None and (report is None or report.inputs.get(f"holdout_metrics/{key}") != metrics.fingerprint):
            write_report(project, key)
        champion = read_champion(warehouse)
        card = warehouse.manifest("model_card", champion.window) if champion is not None else None
        if champion is not None and (card is None or card.inputs.get(f"served_model/{champion.window}") != champion.fingerprint):
            write_card(project, champion)
    except (LtvError, OSError) as error:
        problems.append(f"the window's documents are not complete: {error}")
    return problems


def store_ablation(project: Project, key: str, table: pd.DataFrame) -> None:
    """Keep an ablation with the days and settings it was made from, and show it in the window's report if there is one."""
    code, config, inputs = _ablation_identity(project, key)

    def fill(folder: Path) -> dict[str, int | None]:
        table.to_csv(folder / ABLATION_FILE, index=False)
        return {ABLATION_FILE: None}

    project.warehouse.write("ablation", key, fill, code_version=code, config=config, inputs=inputs)
    if project.warehouse.manifest("holdout_metrics", key) is not None:
        write_report(project, key)


def _ablation_identity(project: Project, key: str) -> tuple[str, str, dict[str, str]]:
    """Code version, configuration and inputs an ablation is valid for: those of the window's models and its holdout day."""
    lineage = project.lineage()
    inputs = lineage.inputs("histos_train", key) | {
        f"flattened_features/{key}": project.warehouse.fingerprint("flattened_features", key) or ""
    }
    return CODE_VERSIONS["stacker"], lineage.config_hash("revenue_regressor", key), dict(sorted(inputs.items()))


# ------------------------------------------------------------------------------------------------------------- gathering


@dataclass(frozen=True)
class WindowFacts:
    """Everything the warehouse says of one evaluated window, read when it is asked for."""

    project: Project
    key: str

    @cached_property
    def figures(self) -> pd.DataFrame:
        """Rows of ``holdout_metrics``: metric, segment, value, low, high."""
        files = self.project.warehouse.files("holdout_metrics", self.key)
        return pd.concat([pq.read_table(f).to_pandas() for f in files], ignore_index=True)

    def segment(self, name: str = ALL) -> dict[str, Any]:
        """{metric: row} of one segment."""
        rows = self.figures[self.figures["segment"] == name]
        return {row.metric: row for row in rows.itertuples()}

    def value(self, metric: str, segment: str = ALL) -> float:
        """One figure; NaN where it is undefined or was not measured."""
        row = self.segment(segment).get(metric)
        return float("nan") if row is None else float(row.value)

    @cached_property
    def training_days(self) -> tuple[str, ...]:
        """Days the window's models were trained on, as the manifest of its evaluation says."""
        inputs = self.project.warehouse.require("holdout_metrics", self.key, "run `ltv run`").inputs
        days = (name.partition("/")[2] for name in inputs if name.startswith("flattened_features/"))
        return tuple(sorted(day for day in days if day != self.key))

    @cached_property
    def missing_days(self) -> tuple[str, ...]:
        """Days between the first training day and the holdout that did not train."""
        first, last = parse_day(self.training_days[0]), parse_day(self.key)
        between: list[date] = [first + timedelta(days=i) for i in range((last - first).days)]
        return tuple(str(day) for day in between if str(day) not in self.training_days)

    @cached_property
    def models(self) -> WindowModels:
        """The evaluated models."""
        return read_evaluated(self.project.warehouse, self.key)

    @cached_property
    def ablation(self) -> pd.DataFrame | None:
        """The ablation of this window, if one was made from the same days and settings."""
        try:
            manifest = self.project.warehouse.manifest("ablation", self.key)
            if manifest is None:
                return None
            if (manifest.code_version, manifest.config, manifest.inputs) != _ablation_identity(self.project, self.key):
                return None
        except StaleError:
            return None
        return pd.read_csv(io.BytesIO(self.project.warehouse.artifacts("ablation", self.key)[ABLATION_FILE]))

    @cached_property
    def days(self) -> tuple[dict[str, Any], ...]:
        """One dictionary per training day and the holdout: rows, payers, what was set aside, and what checks said of it."""
        return tuple(self._day(day) for day in (*self.training_days, self.key))

    def _day(self, day: str) -> dict[str, Any]:
        warehouse = self.project.warehouse
        raw = warehouse.require("raw_partitions", day, "run `ltv run`").facts
        manifest = warehouse.require("flattened_features", day, "run `ltv run`")
        revenue = [pq.read_table(f, columns=["iap_revenue_d7"])["iap_revenue_d7"] for f in warehouse.files("flattened_features", day)]
        verdicts = {v.check: v for v in warehouse.verdicts("flattened_features", day)}
        drift, adversarial = verdicts.get("drift"), verdicts.get("adversarial_drift")
        return {
            "day": day,
            "raw": raw,
            "facts": manifest.facts,
            "files_aside": [*raw["files_quarantined"], *manifest.facts.get("files_quarantined", [])],
            "rows": manifest.rows,
            "payers": sum(pc.sum(pc.greater(column, 0)).as_py() or 0 for column in revenue),
            "psi": float(drift.figures["largest_psi"]) if drift and "largest_psi" in drift.figures else float("nan"),
            "auc": float(adversarial.figures["auc"]) if adversarial and "auc" in adversarial.figures else float("nan"),
            "remarks": [v.message for v in (drift, adversarial) if v is not None and not v.passed],
        }

    @property
    def simulated(self) -> bool:
        """True if the truth behind the holdout is known, which only a simulation can offer."""
        return "rmsle_oracle" in self.segment()


# -------------------------------------------------------------------------------------------------------------- documents


def report_document(told: WindowFacts, pictures: Mapping[str, bytes]) -> Document:
    """The report of one window, with the pictures of its holdout by file name."""
    from ltv_assets.training.evaluation import CAPTIONS

    shown = [Picture(png, CAPTIONS.get(name, name.removesuffix(".png").replace("_", " "))) for name, png in pictures.items()]
    return Document(
        f"Window {told.key}",
        _lead(told),
        (
            Section("Headline", (_headline(told), _reading(told))),
            Section("Pictures", tuple(shown)),
            Section("Gate and calibration", _gate(told)),
            Section("Segments with the largest error", _segments(told, WORST_SEGMENTS)),
            Section("Features", _features(told)),
            Section("What each part contributes", _ablation(told)),
            Section("Data", _data(told)),
            Section("Training", (_training(told),)),
            Section("Limits", (_limits(told),)),
        ),
    )


def card_document(told: WindowFacts, champion: Champion) -> Document:
    """The model card of a champion, in the order Mitchell et al. (2019) propose: what, for what, from what, how good, with what care."""
    lead = (
        f"The model that scores new days: served model of window {told.key}, content `{champion.fingerprint}`.",
        f"Why it is champion: {champion.why}.",
    )
    return Document(
        f"Model card: window {told.key}",
        lead,
        (
            Section("What it is", (_what_it_is(told),)),
            Section("Intended use", (_use(),)),
            Section("Data", (_training(told), *_data(told)[:1])),
            Section("Figures", (*_lead(told), _headline(told), _reading(told))),
            Section("Calibration and gate", _gate(told)),
            Section("Segments with the largest error", _segments(told, WORST_SEGMENTS)),
            Section("Checks", _checks(told)),
            Section("Limits", (_limits(told),)),
            Section("With care", (_care(),)),
        ),
    )


def _lead(told: WindowFacts) -> tuple[str, ...]:
    trained = sum(day["rows"] for day in told.days[:-1])
    low, high = (getattr(told.segment()["rmsle_minus_reference"], end, float("nan")) for end in ("low", "high"))
    difference = told.value("rmsle_minus_reference")
    verdict = "better than" if high < 0 else "worse than" if low > 0 else "not distinguishable from"
    sentences = [
        f"Trained on {len(told.training_days)} days ({told.training_days[0]} to {told.training_days[-1]}, {_count(trained)} impressions), "
        f"measured on {told.key}, which it never saw: {_count(told.value('rows'))} impressions, {_count(told.value('payers'))} of them "
        f"with revenue, {_usd(told.value('revenue_usd'))} in total.",
        f"Its RMSLE of {told.value('rmsle'):.4f} is {verdict} that of one LightGBM on the same features "
        f"({told.value('rmsle_reference'):.4f}; difference {difference:+.4f}, 95 % interval {low:+.4f} .. {high:+.4f}).",
    ]
    if told.simulated:
        sentences.append("The impressions are simulated: these figures test the method and say nothing about real traffic.")
    return tuple(sentences)


def _headline(told: WindowFacts) -> Table:
    rows, names = [], []
    for name, label in HEADLINE:
        row = told.segment().get(name)
        if row is not None and row.value == row.value:
            rows.append(
                (label, _number(row.value), _interval(row.low, row.high), METRICS[name].unit, METRICS[name].better.replace("none", ""))
            )
            names.append(name)
    return Table(("figure", "value", "95 % interval", "unit", "better"), tuple(rows), tuple(names))


def _reading(told: WindowFacts) -> str:
    cap, tail = _usd(told.models.cap_usd), told.value("tail_factor")
    return (
        "`ltv_d7` is best under RMSLE and far below the money that comes in; `expected_revenue_d7` adds up to money, each row counted "
        f"up to {cap} (recorded revenue is {tail:.2f} times its capped sum). Ranking and all figures use ungated scores unless they "
        "say gated."
    )


def _gate(told: WindowFacts) -> tuple[Block, ...]:
    models = told.models
    gate, whale = models.stacker.gate, models.gating
    rows: list[tuple[str, Figure | str]] = [
        ("calibration of the buyer probability", models.classifier.calibrator.kind),
        ("calibration error (ECE), probability", _number(told.value("ece"))),
        ("mean probability / share of payers", _number(told.value("mean_p_over_rate"))),
        ("cap of the probability", _number(whale.cap)),
        ("how the zero rate is set", whale.zero_rate),
        ("zero rate aimed at", _number(gate.target_zero_rate)),
        ("share of payers followed", _number(whale.level.rate)),
        ("share of payers, all days of the window", _number(whale.level.pooled)),
        ("share of payers, newest day of the window", _number(float(whale.level.daily[-1]))),
        ("weight of that day", _number(whale.level.weights[-1])),
        ("change of the share from day to day beyond chance, sd", _number(whale.level.movement_sd)),
        ("zero rate recorded on the holdout", _number(told.value("zero_rate_observed"))),
        ("zero rate predicted on the holdout", _number(told.value("zero_rate_predicted"))),
        ("score below which a row is set to zero, log1p USD", "no gate" if gate.cutoff is None else _number(gate.cutoff)),
        ("cost of the gate in RMSLE, log USD", _number(told.value("gate_cost_rmsle"))),
        ("revenue from which a payer is a whale, USD", _number(whale.whale_usd, 2)),
        ("whale probability above which no row is gated", "no rule" if whale.whale_cutoff is None else _number(whale.whale_cutoff)),
    ]
    return (Table(("gate and calibration", "value"), tuple(rows)),)


def _segments(told: WindowFacts, most: int) -> tuple[Block, ...]:
    wide = told.figures[told.figures["segment"] != ALL]
    worst = wide[wide["metric"] == "rmsle"].dropna(subset=["value"]).sort_values(["value", "segment"], ascending=[False, True]).head(most)
    if worst.empty:
        return ("No segment is large enough to be measured apart.",)
    rows = []
    for name in worst["segment"]:
        found = told.segment(name)
        difference = found.get("rmsle_minus_reference")
        rows.append(
            (
                str(name),
                _number(told.value("rows", name), 0),
                _number(told.value("payers", name), 0),
                _number(found["rmsle"].value),
                _interval(found["rmsle"].low, found["rmsle"].high),
                _number(told.value("rmsle_reference", name)),
                "worse" if difference is not None and difference.low > 0 else "",
                _number(told.value("zero_rate_observed", name)),
                _number(told.value("zero_rate_predicted", name)),
            )
        )
    header = ("segment", "rows", "payers", "RMSLE", "95 % interval", "reference", "beyond noise", "zero rate", "predicted")
    smallest = told.project.config.evaluation.min_segment_rows
    text = (
        f"By RMSLE in log USD. Segments of fewer than {smallest} rows are pooled as (other). Where more people pay, errors are "
        "larger for any model: compare with the reference beside it."
    )
    return (text, Table(header, tuple(rows), tuple(str(s) for s in worst["segment"])))


def _features(told: WindowFacts) -> tuple[Block, ...]:
    from ltv_assets.plots import feature_importances

    described = {c.name: c.description for c in told.project.flattened_columns}
    classifier, head = told.models.classifier.model.importance(), told.models.regressor.head.importance()
    totals = [sum(v["gain"] for v in found.values()) or 1.0 for found in (classifier, head)]
    shares = {
        name: tuple(found.get(name, {}).get("gain", 0.0) / total for found, total in zip((classifier, head), totals, strict=True))
        for name in sorted({*classifier, *head})
    }
    top = sorted(shares, key=lambda name: (-sum(shares[name]), name))[:TOP_FEATURES]
    rows = tuple((f"`{n}`", _percent(shares[n][0]), _percent(shares[n][1]), described.get(n, "")) for n in top)
    drawn = tuple(
        Picture(
            feature_importances(list(found), [v["gain"] for v in found.values()], [v["split"] for v in found.values()], title=title),
            caption,
        )
        for found, title, caption in (
            (classifier, "Buyer classifier", "Who pays: share of gain (bars) and of splits (diamonds) in the buyer classifier."),
            (head, "D7 revenue head", "How much payers spend: the same in the revenue head."),
        )
    )
    header = ("feature", "gain, who pays (%)", "gain, how much (%)", "what it is")
    return (Table(header, rows), *drawn)


def _ablation(told: WindowFacts) -> tuple[Block, ...]:
    table = told.ablation
    if table is None:
        return (f"Not measured for these days and settings. `ltv ablate --window {told.key}` fits the variants and adds the table here.",)
    rows = []
    for row in table.itertuples():
        rows.append(
            (
                str(row.variant),
                _number(row.rmsle),
                _interval(row.rmsle_low, row.rmsle_high),
                _number(row.minus_reference),
                _interval(row.minus_reference_low, row.minus_reference_high, signed=True),
                _number(row.rmsle_gated),
                _number(row.auc),
                _number(row.ece),
                _number(row.expected_revenue_ratio, 3),
            )
        )
    text = (
        "The window fitted again without one part at a time, measured on the same holdout. "
        "The paired interval of the difference to the reference says what is more than noise."
    )
    return (text, Table(ABLATION_HEADER, tuple(rows), tuple(str(v) for v in table["variant"])))


def _data(told: WindowFacts) -> tuple[Block, ...]:
    rows = []
    for day in told.days:
        raw, facts = day["raw"], day["facts"]
        rows.append(
            (
                day["day"] + (" (holdout)" if day["day"] == told.key else ""),
                _number(day["rows"], 0),
                _number(day["payers"], 0),
                _number(100 * day["payers"] / max(day["rows"], 1), 2),
                _number(len(day["files_aside"]), 0),
                _number(len(raw["missing_hours"]), 0),
                _number(sum(facts["rows_quarantined"].values()) + facts.get("rows_in_files_quarantined", 0), 0),
                _number(sum(facts["future_timestamps"].values()) + sum(facts["nonfinite_values"].values()), 0),
                _number(day["psi"], 3),
                _number(day["auc"], 3),
            )
        )
    header = (
        "day",
        "rows",
        "payers",
        "payers (%)",
        "files set aside",
        "hours missing",
        "rows set aside",
        "unusual values",
        "largest PSI",
        "drift AUC",
    )
    table = Table(header, tuple(rows), tuple(day["day"] for day in told.days))
    text = (
        "Unusual values are timestamps in the future and numbers that are not finite; they are read as missing. PSI compares a day's "
        "most shifted feature with the day before; the drift AUC says how well a small model tells the day's rows from those before it "
        "(0.5: not at all)."
    )
    return (table, text, _remarks(told))


def _remarks(told: WindowFacts) -> Block:
    lines = [f"{day}: did not train; it is a gap in `data.gap_days`, or kept out by `windows.embargo_days`" for day in told.missing_days]
    for day in told.days:
        raw, facts = day["raw"], day["facts"]
        lines += [f"{day['day']}: file `{path}` set aside: {reason}" for path, reason in day["files_aside"]]
        lines += [f"{day['day']}: {n} rows set aside: {reason}" for reason, n in sorted(facts["rows_quarantined"].items())]
        if raw["columns_missing"]:
            lines.append(f"{day['day']}: columns read as missing: {', '.join(raw['columns_missing'])}")
        lines += [f"{day['day']}: {warning}" for warning in facts["warnings"]]
        lines += [message if message.startswith("day ") else f"{day['day']}: {message}" for message in day["remarks"]]
    if not lines:
        return "Nothing was set aside, no day is missing, and no check for drift complained."
    more = (f"... and {len(lines) - MAX_REMARKS} more: `ltv status`",) if len(lines) > MAX_REMARKS else ()
    return Points((*lines[:MAX_REMARKS], *more))


def _training(told: WindowFacts) -> Points:
    config, warehouse, key = told.project.config, told.project.warehouse, told.key
    lineage = told.project.lineage()
    trained, payers = (sum(day[name] for day in told.days[:-1]) for name in ("rows", "payers"))
    horizons = warehouse.require("holdout_metrics", key, "run `ltv run`").inputs.get("label_horizons", "7")
    learner = told.models.stacker
    fingerprints = ", ".join(f"{day} `{warehouse.fingerprint('flattened_features', day)}`" for day in (*told.training_days, key))
    return Points(
        (
            f"{len(told.training_days)} training days, {told.training_days[0]} to {told.training_days[-1]}: {_count(trained)} impressions, "
            f"{_count(payers)} with revenue within seven days.",
            f"Final labels: D{', D'.join(horizons.split(','))}. Days before the holdout left out: {config.windows.embargo_days}.",
            f"{len(told.project.registry.features)} features (registry `{told.project.registry.fingerprint()}`), "
            f"{len(told.models.classifier.model.names)} inputs after encoding; seed {config.seed}; {config.compute.threads} threads.",
            f"Sampling: {config.sampling.classifier} for the classifier, {config.sampling.regressor} for the regressor.",
            f"Final score: {FINAL_SCORE.get(learner.kind, learner.kind).format(learner.component)}.",
            f"Configuration `{lineage.config_hash('stacker', key)}`, code {CODE_VERSIONS['stacker']}, ltv_assets {__version__}.",
            f"Content of the days: {fingerprints}.",
        )
    )


def _limits(told: WindowFacts) -> Points:
    lines = [
        "The figures are those of the model trained before the holdout. The served model is fitted again with the holdout included; "
        "nothing is left to measure it on before new labels come in.",
        "One day measures. The intervals come from drawing its rows again and do not hold the change from day to day; "
        "a backfill of the job `backtest` shows that.",
        f"The longest of the tail is not predicted: `expected_revenue_d7` counts a row up to {_usd(told.models.cap_usd)}, and whether a "
        "single payer spends thousands cannot be known from an impression.",
        "Only impressions that were bought are in the data. For those that another bidder won, the model extrapolates.",
        "Apps, countries and devices that training never saw share one bucket each; see the segments `cold_bundle`.",
        "A D7 label of a recent day is not final, so live scores rest on data at least a week old.",
    ]
    if told.simulated:
        lines.insert(0, "The impressions are simulated with a known law. Nothing here is evidence about real users.")
    return Points(tuple(lines))


def _what_it_is(told: WindowFacts) -> Points:
    return Points(
        (
            "Order-preserving two-part model on LightGBM: calibrated probability of a payer, log revenue of payers, non-negative "
            "increments to 14 and 28 days, a whale rule, a zero gate, and a stacker over linear, forest and boosted learners.",
            "Input: one impression in the columns of the data dictionary. Output: probability, revenue at three horizons in USD, "
            "and the gate's verdict.",
            f"Files: `models/window={told.key}/served_model/` in the warehouse, LightGBM text and JSON, each hashed. Nothing is unpickled.",
            "Licence of the code: Apache-2.0. The data's terms are those of whoever supplied it.",
        )
    )


def _use() -> Points:
    return Points(
        (
            "Meant for valuing and ranking ad impressions: bids, budgets and forecasts over many impressions.",
            "Use `ltv_d7` to rank and where RMSLE counts, `expected_revenue_d7` wherever amounts are added or compared with prices.",
            "Not meant for decisions about one person: credit, prices, eligibility, moderation, or finding out who somebody is.",
        )
    )


def _care() -> Points:
    return Points(
        (
            "The inputs describe devices and their past purchases. They are personal data in most jurisdictions: consent, purpose and "
            "retention are the operator's duty, and deleted users must leave the raw data before the next training.",
            "High scores point at heavy spenders, among them people who spend more than is good for them. Cap frequency, leave sensitive "
            "categories out (gambling, children's apps), and do not bid on the score alone.",
            "Country, device and system stand in for income and origin. Read the segments before using scores where equal treatment "
            "is due.",
            "Scores move where money goes, and the next labels come from what was bought. Keep a share of traffic that is bought at "
            "random.",
        )
    )


def _checks(told: WindowFacts) -> tuple[Block, ...]:
    rows = []
    for asset in ("buyer_classifier", "holdout_metrics"):
        for verdict in told.project.warehouse.verdicts(asset, told.key):
            if verdict.blocking:  # the others may run later than this is written
                said = "failed" if not verdict.passed else "passed, with a warning" if verdict.remark else "passed"
                rows.append((f"`{asset}`", f"`{verdict.check}`", said, verdict.message))
    if not rows:
        return ("No blocking check has run on the present content.",)
    return (Table(("asset", "check", "verdict", "what it found"), tuple(rows)),)


# ---------------------------------------------------------------------------------------------------------------- figures


def _number(value: float | None, digits: int = 4) -> Figure | str:
    """A figure, or a dash where there is none."""
    if value is None or value != value:
        return "-"
    text = f"{value:,.{digits}f}".replace(",", " ") if digits == 0 else f"{value:.{digits}f}"
    return Figure(float(value), text)


def _percent(share: float) -> Figure:
    return Figure(share, f"{100 * share:.1f}")


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None or high is None or low != low or high != high:
        return ""
    return f"{low:+.4f} .. {high:+.4f}" if signed else f"{low:.4f} .. {high:.4f}"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u00a0")


def _usd(value: float) -> str:
    return f"${value:,.0f}".replace(",", "\u00a0")
