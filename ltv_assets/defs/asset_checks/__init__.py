"""Asset checks: functions from (project, partition) to an outcome, and their binding to Dagster.

What belongs here: what was published is read and judged, never what is in memory, so a check can be executed alone, from the UI, at any
time; one file per subject, each free of Dagster but ``registry.py``. What does not: making or changing partitions. Read first:
``training.py``.
"""

# Each of these files declares its checks as it is imported; whoever imports the folder has them all.
from ltv_assets.defs.asset_checks import features as features
from ltv_assets.defs.asset_checks import health as health
from ltv_assets.defs.asset_checks import ingestion as ingestion
from ltv_assets.defs.asset_checks import scoring as scoring
from ltv_assets.defs.asset_checks import training as training
