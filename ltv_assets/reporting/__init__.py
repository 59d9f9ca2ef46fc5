"""What readers get of a window.

What belongs here: the report, the model card and their templates. What does not: anything a partition is made from.
Read first: ``report.py``, then ``sections.py`` and ``templates/sentences.txt``.
"""
