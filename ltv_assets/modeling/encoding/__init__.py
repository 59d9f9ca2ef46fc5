"""Encodings learnt from training rows.

What belongs here: category maps, target encodings, group ranks. What does not: features that need no training. Read
first: ``window_encoder.py``.
"""
