"""The command line.

What belongs here: commands (parse, call, print) and the bodies that only a command needs. What does not: anything
another room calls. Read first: ``app.py``.
"""
