"""Which documents a killed run left out.

What belongs here: the question, and the call that answers it. What does not: the documents (``report.py``,
``model_card.py``), which are imported only when one is missing, for they are slow to import. Next to read: ``report.py``.
"""

from __future__ import annotations

from ltv_assets.core.errors import LtvError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import read_champion


def complete_documents(project: Project, key: PartitionKey) -> list[str]:
    """Write what a killed run left out: the report of an evaluated window, the champion's card. Returns problems instead of raising."""
    warehouse, problems = project.warehouse, []
    try:
        metrics, report = warehouse.manifest("holdout_metrics", key), warehouse.manifest("report", key)
        if metrics is not None and (report is None or report.inputs.get(f"holdout_metrics/{key}") != metrics.fingerprint):
            from ltv_assets.reporting.report import write_report

            write_report(project, key)
        champion = read_champion(warehouse)
        card = warehouse.manifest("model_card", champion.window) if champion is not None else None
        if champion is not None and (card is None or card.inputs.get(f"served_model/{champion.window}") != champion.fingerprint):
            from ltv_assets.reporting.model_card import write_card

            write_card(project, champion)
    except (LtvError, OSError) as error:
        problems.append(f"the window's documents are not complete: {error}")
    return problems
