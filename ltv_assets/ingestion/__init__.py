"""Raw files and the calendar.

What belongs here: days, hours and files, whether they are readable, whether they have arrived. What does not: features,
the warehouse's own files. Read first: ``calendar.py``.
"""
