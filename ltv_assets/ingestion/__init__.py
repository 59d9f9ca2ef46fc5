"""Raw files and the calendar.

What belongs here: which days, hours and files there are, what can be read of them, what has arrived. What does not:
features, the warehouse's own files. Read first: ``calendar.py``.
"""
