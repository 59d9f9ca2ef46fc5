"""The columns of the shipped contract by name, for what is made for them: the simulator, its tests, benchmarks, documentation.

What belongs here: nothing but these names. What does not: columns of whatever contract is in force, which code reaches through
the configuration or the feature registry (``contract.py``).
"""

from __future__ import annotations

from ltv_assets.core.contract import Column, load_contract

RAW_COLUMNS: tuple[Column, ...] = load_contract().columns
BY_NAME: dict[str, Column] = load_contract().by_name
INPUTS: tuple[Column, ...] = load_contract().inputs
LABEL_NAMES: tuple[str, ...] = load_contract().label_names
SCORED_COLUMNS: tuple[str, ...] = load_contract().scores.columns
