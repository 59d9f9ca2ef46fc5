"""State of the project: partitions that exist, are fresh, or could be made.

What belongs here: the opened project, freshness, readiness, status. What does not: making partitions. Read first:
``project.py``.
"""
