"""Selection of the serving window.

What belongs here: comparison of a challenger with the champion, promotion, rollback. What does not: training. Read
first: ``promotion.py``.
"""
