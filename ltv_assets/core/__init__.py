"""What every room agrees on.

What belongs here: columns and relations, configuration, errors, DuckDB, memory, parallel work. What does not: features,
models, files of the warehouse. Read first: ``contract.py``.
"""
