"""LightGBM parameters that every fit shares, whatever it is for."""

from __future__ import annotations

from typing import Any


def repeatable_params(seed: int, threads: int, *, by_row: bool) -> dict[str, Any]:
    """LightGBM parameters that give the same bits again on one machine, with histograms built by row or by column."""
    layout = "force_row_wise" if by_row else "force_col_wise"
    return {"deterministic": True, layout: True, "num_threads": threads, "seed": seed, "verbose": -1}
