"""Sections that the report and the model card share. Sentences are in ``templates/sentences.txt``, facts in ``window_facts.py``."""

from __future__ import annotations

from collections.abc import Mapping

from ltv_assets import __version__
from ltv_assets.core.asset_specs import CODE_VERSIONS
from ltv_assets.modeling.evaluation.segments import ALL, headline_of, metrics_of
from ltv_assets.reporting.document import Block, Picture, Points, Table, sentences
from ltv_assets.reporting.formatting import Figure, interval, number, percent
from ltv_assets.reporting.window_facts import WindowFacts

WORST_SEGMENTS = 12
MOST_GROUPS = 20
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


def lead(window: WindowFacts) -> tuple[str, ...]:
    """What was trained and measured, and how it compares with the reference."""
    difference = window.segment()["rmsle_minus_reference"]
    trained = sum(day["rows"] for day in window.days[:-1])
    return sentences("lead", window=window, trained=trained, low=difference.low, high=difference.high)


def headline(window: WindowFacts) -> Table:
    """Headline figures with their intervals, units and directions."""
    rows, names = [], []
    names_of_scores = window.project.contract.scores
    metrics = metrics_of(names_of_scores)
    for name, label in headline_of(names_of_scores):
        row = window.segment().get(name)
        if row is not None and row.value == row.value:
            rows.append(
                (label, number(row.value), interval(row.low, row.high), metrics[name].unit, metrics[name].better.replace("none", ""))
            )
            names.append(name)
    return Table(("figure", "value", "95 % interval", "unit", "better"), tuple(rows), tuple(names))


def reading(window: WindowFacts) -> str:
    """How to read the two amounts of a prediction."""
    (text,) = sentences("reading", window=window)
    return text


def gate(window: WindowFacts) -> tuple[Block, ...]:
    """Figures of the gate and of calibration."""
    models = window.models
    gate, whale = models.stacker.gate, models.gating
    rows: list[tuple[str, Figure | str]] = [
        ("calibration of the buyer probability", models.classifier.calibrator.kind),
        ("calibration error (ECE), probability", number(window.value("ece"))),
        ("mean probability / share of payers", number(window.value("mean_p_over_rate"))),
        ("cap of the probability", number(whale.cap)),
        ("how the zero rate is set", whale.zero_rate),
        ("zero rate aimed at", number(gate.target_zero_rate)),
        ("share of payers followed", number(whale.level.rate)),
        ("share of payers, all days of the window", number(whale.level.pooled)),
        ("share of payers, newest day of the window", number(float(whale.level.daily[-1]))),
        ("weight of that day", number(whale.level.weights[-1])),
        ("change of the share from day to day beyond chance, sd", number(whale.level.movement_sd)),
        ("zero rate recorded on the holdout", number(window.value("zero_rate_observed"))),
        ("zero rate predicted on the holdout", number(window.value("zero_rate_predicted"))),
        ("score below which a row is set to zero, log1p USD", "no gate" if gate.cutoff is None else number(gate.cutoff)),
        ("cost of the gate in RMSLE, log USD", number(window.value("gate_cost_rmsle"))),
        ("revenue from which a payer is a whale, USD", number(whale.whale_usd, 2)),
        ("whale probability above which no row is gated", "no rule" if whale.whale_cutoff is None else number(whale.whale_cutoff)),
    ]
    return (Table(("gate and calibration", "value"), tuple(rows)),)


def segments(window: WindowFacts, most: int) -> tuple[Block, ...]:
    """The ``most`` segments with the largest RMSLE."""
    wide = window.figures[window.figures["segment"] != ALL]
    worst = wide[wide["metric"] == "rmsle"].dropna(subset=["value"]).sort_values(["value", "segment"], ascending=[False, True]).head(most)
    if worst.empty:
        return sentences("no_segment")
    rows = []
    for name in worst["segment"]:
        found = window.segment(name)
        difference = found.get("rmsle_minus_reference")
        rows.append(
            (
                str(name),
                number(window.value("rows", name), 0),
                number(window.value("payers", name), 0),
                number(found["rmsle"].value),
                interval(found["rmsle"].low, found["rmsle"].high),
                number(window.value("rmsle_reference", name)),
                "worse" if difference is not None and difference.low > 0 else "",
                number(window.value("zero_rate_observed", name)),
                number(window.value("zero_rate_predicted", name)),
            )
        )
    header = ("segment", "rows", "payers", "RMSLE", "95 % interval", "reference", "beyond noise", "zero rate", "predicted")
    (text,) = sentences("segments", smallest=window.project.config.evaluation.min_segment_rows)
    return (text, Table(header, tuple(rows), tuple(str(s) for s in worst["segment"])))


def forecast(window: WindowFacts) -> tuple[Block, ...]:
    """Groups of the holdout day as they were forecast before it was seen, and what came."""
    from ltv_assets.plots import forecast_intervals

    groups = window.forecast
    shown = groups.head(1 + MOST_GROUPS)
    names = tuple(s if s == v else f"{s} = {v}" for s, v in zip(shown["segment"], shown["value"], strict=True))
    rows = tuple(
        (
            name,
            number(row.rows, 0),
            number(row.expected_payers, 1),
            f"{row.payers_low:.1f} .. {row.payers_high:.1f}",
            number(row.payers, 0),
            number(row.expected_revenue_usd, 2),
            f"{row.revenue_low_usd:.2f} .. {row.revenue_high_usd:.2f}",
            number(row.revenue_capped_usd, 2),
        )
        for name, row in zip(names, shown.itertuples(), strict=True)
    )
    header = ("group", "rows", "payers expected", "80 % interval", "came", "revenue expected (USD)", "80 % interval (USD)", "came (USD)")
    ends = (shown[f"{name}_usd"] for name in ("expected_revenue", "revenue_low", "revenue_high"))
    text, caption = sentences("forecast", window=window, groups=groups)
    title = f"Forecast of {window.key}, and what came"
    png = forecast_intervals(names, *ends, observed=shown["revenue_capped_usd"], title=title, within=window.within)
    return (text, Table(header, rows, names), Picture(png, caption))


def features(window: WindowFacts) -> tuple[Block, ...]:
    """Most important features of classifier and revenue head."""
    from ltv_assets.plots import feature_importances

    described = {c.name: c.description for c in window.project.flattened_columns}
    classifier, head = window.models.classifier.model.importance(), window.models.regressor.head.importance()
    totals = [sum(v["gain"] for v in found.values()) or 1.0 for found in (classifier, head)]
    shares = {
        name: tuple(found.get(name, {}).get("gain", 0.0) / total for found, total in zip((classifier, head), totals, strict=True))
        for name in sorted({*classifier, *head})
    }
    top = sorted(shares, key=lambda name: (-sum(shares[name]), name))[:TOP_FEATURES]
    rows = tuple((f"`{n}`", percent(shares[n][0]), percent(shares[n][1]), described.get(n, "")) for n in top)
    drawn = tuple(
        Picture(
            feature_importances(list(found), [v["gain"] for v in found.values()], [v["split"] for v in found.values()], title=title),
            caption,
        )
        for found, title, caption in zip((classifier, head), ("Buyer classifier", "Revenue head"), sentences("features"), strict=True)
    )
    header = ("feature", "gain, who pays (%)", "gain, how much (%)", "what it is")
    return (Table(header, rows), *drawn)


def ablation(window: WindowFacts) -> tuple[Block, ...]:
    """What each part contributes, if it was measured."""
    table = window.ablation
    if table is None:
        return sentences("no_ablation", window=window)
    rows = []
    for row in table.itertuples():
        rows.append(
            (
                str(row.variant),
                number(row.rmsle),
                interval(row.rmsle_low, row.rmsle_high),
                number(row.minus_reference),
                interval(row.minus_reference_low, row.minus_reference_high, signed=True),
                number(row.rmsle_gated),
                number(row.auc),
                number(row.ece),
                number(row.expected_revenue_ratio, 3),
            )
        )
    (text,) = sentences("ablation")
    return (text, Table(ABLATION_HEADER, tuple(rows), tuple(str(v) for v in table["variant"])))


def data(window: WindowFacts) -> tuple[Block, ...]:
    """Table of the days, its explanation, and remarks."""
    rows = []
    for day in window.days:
        raw, facts = day["raw"], day["facts"]
        rows.append(
            (
                day["day"] + (" (holdout)" if day["day"] == window.key else ""),
                number(day["rows"], 0),
                number(day["payers"], 0),
                number(100 * day["payers"] / max(day["rows"], 1), 2),
                number(len(day["files_aside"]), 0),
                number(len(raw["missing_hours"]), 0),
                number(sum(facts["rows_quarantined"].values()) + facts.get("rows_in_files_quarantined", 0), 0),
                number(sum(facts["future_timestamps"].values()) + sum(facts["nonfinite_values"].values()), 0),
                number(day["psi"], 3),
                number(day["auc"], 3),
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
    table = Table(header, tuple(rows), tuple(day["day"] for day in window.days))
    (text,) = sentences("data")
    return (table, text, _remarks(window))


def _remarks(window: WindowFacts) -> Block:
    lines = window.remarks
    if not lines:
        (text,) = sentences("no_remark")
        return text
    more = (f"... and {len(lines) - MAX_REMARKS} more: `ltv status`",) if len(lines) > MAX_REMARKS else ()
    return Points((*lines[:MAX_REMARKS], *more))


def training(window: WindowFacts) -> Points:
    """Days, features, sampling, final score and versions of the window's models."""
    warehouse, learner = window.project.warehouse, window.models.stacker
    horizons = warehouse.require("holdout_metrics", window.key, "run `ltv run`").inputs.get("label_horizons", "7").split(",")
    trained, payers = (sum(day[name] for day in window.days[:-1]) for name in ("rows", "payers"))
    return Points(
        sentences(
            "training",
            window=window,
            trained=trained,
            payers=payers,
            horizons=horizons,
            final_score=FINAL_SCORE.get(learner.kind, learner.kind).format(learner.component),
            config_hash=window.project.lineage().config_hash("stacker", window.key),
            code_version=CODE_VERSIONS["stacker"],
            version=__version__,
            contents={day: warehouse.fingerprint("flattened_features", day) for day in (*window.training_days, window.key)},
        )
    )


def limits(window: WindowFacts) -> Points:
    """What the figures cannot say."""
    return Points(sentences("limits", window=window))


def checks(window: WindowFacts) -> tuple[Block, ...]:
    """Results of the blocking checks on the evaluated models."""
    rows = []
    for asset in ("buyer_classifier", "holdout_metrics"):
        for verdict in window.project.warehouse.verdicts(asset, window.key):
            if verdict.blocking:  # the others may run later than this is written
                said = "failed" if not verdict.passed else "passed, with a warning" if verdict.remark else "passed"
                rows.append((f"`{asset}`", f"`{verdict.check}`", said, verdict.message))
    if not rows:
        return sentences("no_check")
    return (Table(("asset", "check", "verdict", "what it found"), tuple(rows)),)
