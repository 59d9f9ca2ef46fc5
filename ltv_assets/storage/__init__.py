"""The warehouse: atomic partitions with manifests, verified reads, the DuckDB catalogue, the inventory of raw files.

Rule of the room: what a reader sees is old or new, never a mixture; nothing is believed without a hash. This room knows
nothing of Dagster, MLflow or models. Read ``files.py`` first, then ``warehouse.py``.
"""
