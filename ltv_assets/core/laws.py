"""Names of the laws by which purchases are simulated. What does not belong here: the laws themselves (``simulator/laws.py``).

The command line names them without loading the simulator.
"""

from __future__ import annotations

from typing import Literal, get_args

LawName = Literal["additive", "interactions", "thresholds", "saturating", "rare", "gaps"]
LAWS: tuple[LawName, ...] = get_args(LawName)
"""Labels are drawn by a law's place, so new ones are added at the end."""
