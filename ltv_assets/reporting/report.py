"""``report.html`` of a window, gathered from the warehouse.

What belongs here: which sections a reader gets, and publishing them beside the window. What does not: sentences
(``templates/sentences.txt``), facts (``window_facts.py``), how a document looks (``document.py``), drawing (``plots/``).
A document is made from what is published, never from memory, so it can be written again at any time and has the same bytes
then. Nothing depends on it: it is written after its window and no partition becomes stale by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.reporting.document import Document, Picture, Section, to_html
from ltv_assets.reporting.model_card import DOCUMENT_VERSION
from ltv_assets.reporting.sections import (
    WORST_SEGMENTS,
    ablation,
    data,
    features,
    forecast,
    gate,
    headline,
    lead,
    limits,
    reading,
    segments,
    training,
)
from ltv_assets.reporting.window_facts import ABLATION_FILE, WindowFacts, ablation_identity
from ltv_assets.state.project import Project
from ltv_assets.storage.manifest import Manifest

REPORT_FILE = "report.html"


def write_report(project: Project, key: PartitionKey, pictures: Mapping[str, bytes] | None = None) -> Path:
    """Write the report of an evaluated window into the warehouse and return its path.

    ``pictures`` of its holdout by file name; without them those of the former report are used again, and drawn anew where
    there is none of this evaluation. Raises StaleError if the window was never evaluated.
    """
    warehouse = project.warehouse
    metrics = warehouse.require("holdout_metrics", key, f"run `ltv run --window {key}`")
    drawn = dict(pictures) if pictures is not None else _pictures_again(project, key, metrics)
    window = WindowFacts(project, key)
    inputs = {f"holdout_metrics/{key}": metrics.fingerprint}
    if window.ablation is not None:
        inputs[f"ablation/{key}"] = warehouse.fingerprint("ablation", key) or ""

    def fill(folder: Path) -> dict[str, int | None]:
        (folder / REPORT_FILE).write_bytes(to_html(report_document(window, drawn)))
        for name, png in drawn.items():
            (folder / name).write_bytes(png)
        return {REPORT_FILE: None, **dict.fromkeys(drawn)}

    config = project.lineage().config_hash("holdout_metrics", key)
    warehouse.write("report", key, fill, code_version=DOCUMENT_VERSION, config=config, inputs=inputs)
    return warehouse.folder("report", key) / REPORT_FILE


def _pictures_again(project: Project, key: PartitionKey, metrics: Manifest) -> dict[str, bytes]:
    known = project.warehouse.manifest("report", key)
    if known is not None and known.inputs.get(f"holdout_metrics/{key}") == metrics.fingerprint:
        return {name: data for name, data in project.warehouse.artifacts("report", key).items() if name.endswith(".png")}
    from ltv_assets.training.evaluation import evaluate_window, holdout_pictures

    return holdout_pictures(evaluate_window(project, key))


def store_ablation(project: Project, key: PartitionKey, table: pd.DataFrame) -> None:
    """Keep an ablation with the days and settings it was made from, and show it in the window's report if there is one."""
    code, config, inputs = ablation_identity(project, key)

    def fill(folder: Path) -> dict[str, int | None]:
        table.to_csv(folder / ABLATION_FILE, index=False)
        return {ABLATION_FILE: None}

    project.warehouse.write("ablation", key, fill, code_version=code, config=config, inputs=inputs)
    if project.warehouse.manifest("holdout_metrics", key) is not None:
        write_report(project, key)


def report_document(window: WindowFacts, pictures: Mapping[str, bytes]) -> Document:
    """The report of one window, with the pictures of its holdout by file name."""
    from ltv_assets.training.evaluation import CAPTIONS

    shown = [Picture(png, CAPTIONS.get(name, name.removesuffix(".png").replace("_", " "))) for name, png in pictures.items()]
    return Document(
        f"Window {window.key}",
        lead(window),
        (
            Section("Headline", (headline(window), reading(window))),
            Section("Pictures", tuple(shown)),
            Section("Gate and calibration", gate(window)),
            Section("Segments with the largest error", segments(window, WORST_SEGMENTS)),
            Section("Forecast by group", forecast(window)),
            Section("Features", features(window)),
            Section("What each part contributes", ablation(window)),
            Section("Data", data(window)),
            Section("Training", (training(window),)),
            Section("Limits", (limits(window),)),
        ),
    )
