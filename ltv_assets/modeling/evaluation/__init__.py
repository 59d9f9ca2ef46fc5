"""What a model is judged by.

What belongs here: metrics, segments, ablation variants. What does not: reading or writing partitions. Read first:
``metrics.py``.
"""
