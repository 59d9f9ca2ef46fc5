"""The asset graph, thin: an asset reads its inputs, calls one function of the core, publishes, and returns metadata.

Computation does not belong here; it lives in ``features``, ``sampling``, ``modeling`` and ``storage``. The modules follow
the graph: ``ingestion`` (raw_partitions, flattened_features), ``sampling``, ``models``, ``evaluation``, ``scoring``.
"""
