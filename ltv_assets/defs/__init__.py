"""Everything Dagster is given.

What belongs here: assets, asset checks, partitions, jobs, schedules, sensors, resources; each verifies, calls one
function, publishes. What does not: arithmetic. Read first: ``../definitions.py``.
"""
