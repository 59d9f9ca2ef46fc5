"""The asset checks: one declaration each, by `check` above the function that judges.

What belongs here: the declaration, and the lists made from it. What does not: judging (``defs/asset_checks/``), stored verdicts
(``storage/warehouse.py``). Read next: ``../defs/asset_checks/training.py``.

The functions read what any floor publishes, so they stand near the top; which of them block, and by which bounds they judge, is asked
far below, wherever freshness is. A program imports their folder where it begins (``../cli/app.py``, ``../definitions.py``), and with it
every one of them; one that forgot is stopped at its first question, because without checks everything would pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from ltv_assets.core.asset_specs import ASSET_NAMES
from ltv_assets.core.partition_key import PartitionKey

MAX_FAILING_ROWS = 10
"""Rows at fault that an outcome shows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found: the verdict, one sentence with the figures, and the rows at fault."""

    passed: bool
    message: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()


CheckFunction = Callable[[Any, PartitionKey], Outcome]
"""From the opened project and a partition to an outcome."""
StandingFunction = Callable[[Any], Outcome]
F = TypeVar("F", bound=CheckFunction)
S = TypeVar("S", bound=StandingFunction)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class CheckSpec:
    """One check of an asset.

    ``blocking``: it must have passed on a partition's present content before anything downstream uses it.
    ``bounds``: configuration keys it judges by; a verdict given under other bounds does not count.
    """

    asset: str
    name: str
    function: CheckFunction
    blocking: bool
    bounds: tuple[str, ...]


_DECLARED: list[CheckSpec] = []
_STANDING: list[StandingFunction] = []


def check(asset: str, *, blocking: bool = False, bounds: tuple[str, ...] = (), name: str | None = None) -> Callable[[F], F]:
    """Declare a function as check of an asset, named as itself unless ``name`` says otherwise; see `CheckSpec`."""

    def declare(function: F) -> F:
        _DECLARED.append(CheckSpec(asset, name or function.__name__, function, blocking, bounds))
        return function

    return declare


def standing_check(function: S) -> S:
    """Declare a check without a partition: it stands at ``submission`` and is run with it and by the job ``health``."""
    _STANDING.append(function)
    return function


@cache
def check_specs() -> tuple[CheckSpec, ...]:
    """Every check of a partition, in the order of the assets."""
    return tuple(sorted(_known(_DECLARED), key=lambda spec: ASSET_NAMES.index(spec.asset)))


def standing_checks() -> tuple[StandingFunction, ...]:
    """Every check of the warehouse as a whole."""
    return tuple(_known(_STANDING))


def _known(declared: list[C]) -> list[C]:
    if not declared:
        raise RuntimeError(
            "this process has not loaded the asset checks, and without them everything would pass; "
            "write `import ltv_assets.defs.asset_checks` where the program begins"
        )
    return declared


@cache
def blocking_checks(asset: str) -> tuple[str, ...]:
    """Names of the checks that keep a partition of this asset from everything downstream unless they have passed."""
    return tuple(spec.name for spec in check_specs() if spec.asset == asset and spec.blocking)


@cache
def check_bounds() -> Mapping[str, tuple[str, ...]]:
    """{check: configuration keys it judges by} of the checks that have any; checks of one name share their bounds."""
    return {spec.name: spec.bounds for spec in check_specs() if spec.bounds}
