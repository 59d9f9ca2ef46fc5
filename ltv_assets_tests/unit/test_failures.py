"""Permanent failures fail once with one message; transient ones are retried, but not for ever."""

from __future__ import annotations

import dagster as dg
import pytest

from ltv_assets.core.errors import ConfigError, DataError, LtvError, ModelFileError, StaleError, TransientError
from ltv_assets.defs import publication as publishing
from ltv_assets.defs.publication import MAX_RETRIES, readable_failures


def attempts_until_the_end(error: Exception, succeed_after: int | None = None) -> tuple[int, dg.ExecuteInProcessResult]:
    """Run one asset that raises ``error`` and count how often it was tried."""
    tried = []

    @dg.asset
    def fragile() -> None:
        with readable_failures():
            tried.append(1)
            if succeed_after is None or len(tried) <= succeed_after:
                raise error

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([fragile], instance=instance, raise_on_error=False)
    return len(tried), result


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "RETRY_SECONDS", 0.0)


@pytest.mark.parametrize("kind", [DataError, StaleError, ModelFileError, ConfigError])
def test_permanent_failure_is_tried_once_and_keeps_its_message(kind: type[LtvError]) -> None:
    tried, result = attempts_until_the_end(kind("day 2025-10-02: no readable file; deliver the hours again"))
    assert tried == 1
    assert not result.success
    (failure,) = result.get_step_failure_events()
    assert failure.step_failure_data.user_failure_data.description == "day 2025-10-02: no readable file; deliver the hours again"


def test_transient_failure_is_retried_a_bounded_number_of_times() -> None:
    tried, result = attempts_until_the_end(TransientError("the catalogue is held"))
    assert tried == 1 + MAX_RETRIES
    assert not result.success


def test_transient_failure_that_passes_is_forgotten() -> None:
    tried, result = attempts_until_the_end(TransientError("the catalogue is held"), succeed_after=1)
    assert tried == 2
    assert result.success


def test_programming_error_is_not_dressed_up() -> None:
    tried, result = attempts_until_the_end(ZeroDivisionError("a bug"))
    assert tried == 1
    (failure,) = result.get_step_failure_events()
    assert "ZeroDivisionError" in str(failure.step_failure_data.error)
