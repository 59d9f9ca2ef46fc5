"""Simulated impressions in the real layout, with a known law and its oracle.

What belongs here: generation of data on which the best possible score is known. What does not: reading such data, except
to compare a score with the truth.

Read in this order: ``facts.py`` (published marginals), ``population.py`` (users), ``columns.py`` (their columns),
``laws.py`` (purchases), ``writer.py`` (files), ``oracle.py`` (the best possible score).
"""

from __future__ import annotations

from ltv_assets.core.laws import LAWS, LawName
from ltv_assets.simulator.oracle import OracleMetrics, attained_share, oracle_metrics
from ltv_assets.simulator.writer import SimulationSummary, Simulator, simulate

__all__ = ["LAWS", "LawName", "OracleMetrics", "SimulationSummary", "Simulator", "attained_share", "oracle_metrics", "simulate"]
