"""Simulated impressions in the real layout, with a known law and its oracle.

What belongs here: everything needed to write data on which the best possible score is known. What does not: anything
that reads such data back, except to judge a score against the truth.

Read in this order: ``facts.py`` (published marginals), ``population.py`` (who is seen), ``columns.py`` (what is known
about them), ``laws.py`` (who buys), ``writer.py`` (files), ``oracle.py`` (how good a prediction can be).
"""

from __future__ import annotations

from ltv_assets.simulator.laws import LAWS, LawName
from ltv_assets.simulator.oracle import OracleMetrics, attained_share, oracle_metrics
from ltv_assets.simulator.writer import SimulationSummary, Simulator, simulate

__all__ = ["LAWS", "LawName", "OracleMetrics", "SimulationSummary", "Simulator", "attained_share", "oracle_metrics", "simulate"]
