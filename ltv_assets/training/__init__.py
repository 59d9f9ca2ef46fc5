"""From the warehouse to fitted models and back.

What belongs here: windows of rows, evaluation on the holdout, the refit, Dask. What does not: formulas. Read first:
``windows.py``.
"""
