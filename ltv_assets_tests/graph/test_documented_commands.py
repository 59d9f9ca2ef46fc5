"""What the documentation tells a reader to type works: every ``sh`` block that is not marked as an excerpt."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ltv_assets_tests.graph.conftest import Ran, command
from ltv_assets_tests.markdown import PAGES, blocks, simple_commands

RUN_ELSEWHERE = ("make", "source", "dagster dev", "dg dev", "ltv dev")
"""Commands that build the environment, run this suite, or serve until somebody stops them."""
SUBMISSION_AGAIN = {("dagster", "asset", "materialize", "--select", "submission"), ("dg", "launch", "--assets", "submission")}
"""To be typed literally after a run; each makes the submission that is there."""


def submissions(run: Ran) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (run.warehouse / "submissions").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_documented_commands_work_on_a_finished_run(copied: Callable[[], Ran]) -> None:
    run = copied()
    env = {**run.environment(), "DAGSTER_CLI_ASSET_MATERIALIZE_MODULE_NAME": "ltv_assets.definitions"}
    lines = [(page, words) for page in PAGES for script in blocks(page, "sh", excerpts=False) for words in simple_commands(script)]
    typed = [(page.name, words) for page, words in lines if not " ".join(words).startswith(RUN_ELSEWHERE)]
    assert {words[0] for _, words in typed} <= {"ltv", "dagster", "dg"}
    assert {tuple(words) for _, words in typed} > SUBMISSION_AGAIN
    before = submissions(run)
    for page, words in dict.fromkeys((page, tuple(words)) for page, words in typed):
        done = command(*words, env=env)
        assert done.returncode == 0, f"{page}: {' '.join(words)}: {done.stderr[-2000:]}"
        assert words not in SUBMISSION_AGAIN or submissions(run) == before, f"{page}: {' '.join(words)} changed the submission"
