"""Which column of a file is which column of the contract. Pure: names in, names out.

Warehouses write names in capitals (WIFI_RATIO), and SQL does not tell upper from lower case; so letters decide here,
their case does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from ltv_assets.core.columns import BY_NAME

ALIKE = 0.85
"""Share of equal letters from which on two names are held against one another."""


def contract_names(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which columns of a file are meant by the contract.

    Returns ({column of the contract: its name in the file}, problems). A problem is a column that stands in the file more
    than once, in whatever case: nobody can say which is meant.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    found: dict[str, str] = {}
    problems: list[str] = []
    for column in BY_NAME:
        written = spellings.get(column, [])
        if len(written) > 1:
            problems.append(_repeated(column, written))
        elif written:
            found[column] = written[0]
    return found, problems


def _repeated(column: str, written: list[str]) -> str:
    different = sorted(set(written))
    if len(different) == 1:
        return f"column {column} stands {len(written)} times; deliver the file again"
    return f"columns {' and '.join(different)} differ only in case; deliver the file with one of them"


def similar_name(column: str, others: Iterable[str]) -> str | None:
    """The one of some other names that might be meant by a missing column; None if none is like it."""
    written = {name.casefold(): name for name in others}
    close = get_close_matches(column, written, n=1, cutoff=ALIKE)
    return written[close[0]] if close else None
