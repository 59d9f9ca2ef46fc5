"""Impressions to features: a declarative registry, the SQL generated from it, and the streaming flattener.

What belongs here: everything that turns one impression's 68 non-label columns into numbers a model can read. What does not:
labels as inputs, encoders fitted on a window (``modeling/encoding/``), sampling, models, Dagster.
Next to read: ``registry.py`` (what is computed), ``sql.py`` (how), ``flatten/`` (the stream from file to file).
"""
