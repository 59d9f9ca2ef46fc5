"""Histogram sampling: plans of row multiplicities and weights, never copies of rows.

What belongs here: the target histogram, hash draws, HistOS and HHISTUS. What does not: features, models, files. Every
result is a small array in the order of the flattened rows. Next to read: ``histogram.py``, then ``histos.py`` and ``hhistus.py``.
"""

from __future__ import annotations

from ltv_assets.sampling.draws import hash_uniform, row_hashes
from ltv_assets.sampling.hhistus import HhistusPlan, plan_hhistus
from ltv_assets.sampling.histogram import TargetHistogram
from ltv_assets.sampling.histos import HistosPlan, plan_histos

__all__ = ["HhistusPlan", "HistosPlan", "TargetHistogram", "hash_uniform", "plan_hhistus", "plan_histos", "row_hashes"]
