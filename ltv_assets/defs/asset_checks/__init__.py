"""Asset checks: functions from (project, partition) to an outcome, and their binding to Dagster.

What belongs here: what was published is read and judged. What does not: making or changing partitions. Read first:
``checks.py``.
"""
