"""MLflow.

What belongs here: records of a window, the queue of what waits, the client, the registry. What does not: anything a run
could fail on. Read first: ``client.py``.
"""
