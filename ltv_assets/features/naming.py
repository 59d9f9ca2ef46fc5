"""Match columns of a file to columns of the contract. Pure: names in, names out.

Matching ignores case, as SQL does: some warehouses write names in capitals (WIFI_RATIO).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from ltv_assets.core.contract import Contract

ALIKE = 0.85
"""Similarity from which two names are suggested for one another."""


def contract_names(names: Sequence[str], contract: Contract) -> tuple[dict[str, str], list[str]]:
    """Match the names of a file to columns of the contract.

    Returns ({column of the contract: its name in the file}, problems). A problem is a duplicate column in
    the file, in any case, because the match is ambiguous.
    """
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    found: dict[str, str] = {}
    problems: list[str] = []
    for column in contract.columns:
        written = spellings.get(column.in_files.casefold(), [])
        if len(written) > 1:
            problems.append(_repeated(column.in_files, written))
        elif written:
            found[column.name] = written[0]
    return found, problems


def _repeated(column: str, written: list[str]) -> str:
    different = sorted(set(written))
    if len(different) == 1:
        return f"column {column} stands {len(written)} times; deliver the file again"
    return f"columns {' and '.join(different)} differ only in case; deliver the file with one of them"


def similar_name(column: str, others: Iterable[str]) -> str | None:
    """The name among ``others`` that is most similar to a missing column; None if none is similar."""
    written = {name.casefold(): name for name in others}
    close = get_close_matches(column, written, n=1, cutoff=ALIKE)
    return written[close[0]] if close else None
