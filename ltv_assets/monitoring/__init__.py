"""Drift and reasons to retrain.

What belongs here: drift of features and scores, the decision to retrain. What does not: acting on them. Read first:
``retraining.py``.
"""
