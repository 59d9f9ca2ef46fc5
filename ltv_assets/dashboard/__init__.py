"""The warehouse as pages for people who look rather than query (`ltv dashboard`).

What belongs here: reading published partitions without a lock, charts as SVG, the pages. What does not: computing figures, which are read
from where the report and the catalogue have them. Read first: ``pages.py``.
"""
