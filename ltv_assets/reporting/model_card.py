"""``model_card.md`` of a champion: made from what is published, so it can be written again and has the same bytes then."""

from __future__ import annotations

from pathlib import Path

from ltv_assets.core.errors import LtvError
from ltv_assets.reporting.document import Document, Points, Section, sentences, to_markdown
from ltv_assets.reporting.sections import WORST_SEGMENTS, checks, data, gate, headline, lead, limits, reading, segments, training
from ltv_assets.reporting.window_facts import WindowFacts
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import Champion, read_champion

CARD_FILE = "model_card.md"
DOCUMENT_VERSION = "1"


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


def card_document(window: WindowFacts, champion: Champion) -> Document:
    """The model card of a champion, in the order Mitchell et al. (2019) propose: what, for what, from what, how good, with what care."""
    return Document(
        f"Model card: window {window.key}",
        sentences("card_lead", window=window, champion=champion),
        (
            Section("What it is", (Points(sentences("what_it_is", window=window)),)),
            Section("Intended use", (Points(sentences("use", window=window)),)),
            Section("Data", (training(window), *data(window)[:1])),
            Section("Figures", (*lead(window), headline(window), reading(window))),
            Section("Calibration and gate", gate(window)),
            Section("Segments with the largest error", segments(window, WORST_SEGMENTS)),
            Section("Checks", checks(window)),
            Section("Limits", (limits(window),)),
            Section("With care", (Points(sentences("care", window=window)),)),
        ),
    )
