"""From models to scores.

What belongs here: batches, folders of files, submissions, the served model behind a request. What does not: fitting.
Read first: ``batch.py``.
"""
