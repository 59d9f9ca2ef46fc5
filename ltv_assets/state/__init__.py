"""What is there, what is fresh, what could be made.

What belongs here: the opened project, freshness, readiness, status. What does not: making partitions. Read first:
``project.py``.
"""
