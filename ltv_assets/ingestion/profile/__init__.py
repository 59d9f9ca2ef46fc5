"""A look at parquet files of any schema: what a contract, a registry and a configuration for them would say, why, and how sure that is.

What belongs here: guesses from names, footers and a bounded sample of rows; the same files give the same guesses. What does not: the
contract itself (``core/contract.py``), reading whole days. Nothing is written but by ``ltv init``, which asks `propose` and prints it.
Next to read: ``proposal.py``.
"""
