"""``ltv run``: everything the configuration asks for, partition by partition through Dagster, skipping what is fresh.

The plan is the one that `ltv status` prints (``state/plan.py``); the work is done by the same jobs the UI launches, in this process.
A day that fails keeps the others going; a window that cannot be trained keeps the submission from being replaced.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ltv_assets.core.errors import LtvError, TransientError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.instance import open_instance
from ltv_assets.ingestion.calendar import uncovered_hours
from ltv_assets.ingestion.inventory import unknown_entries
from ltv_assets.ingestion.raw_days import Split
from ltv_assets.scoring.submission import sample_form
from ltv_assets.state.plan import Step, Targets, plan, steps, up_to
from ltv_assets.state.project import Project
from ltv_assets.storage.champion import is_judged
from ltv_assets.storage.files import STAGING_FOLDER, staging
from ltv_assets.storage.warehouse import WARNING

if TYPE_CHECKING:
    from dagster import DagsterInstance, Definitions, ExecuteInProcessResult

SPLITS: tuple[Split, ...] = ("train", "test")
Progress = Callable[[str], None]
_THIS_COMMAND = re.compile(r"; run `ltv run`(?:, or `[^`]*`)?")
_INSTEAD = "; it follows when what failed before it is mended"
"""The remedy of a failure inside the very command that its message would advise."""
RUN_FOLDER = "run"
"""Label of the staging folder that lives as long as an `ltv run`."""
PROCESS_TAG = "ltv/process"
"""Tag of a Dagster run: the staging folder that lives as long as the process that executes it."""


@dataclass
class Report:
    """What a run did: steps executed and skipped, problems by step, warnings, and how long it took."""

    executed: list[Step] = field(default_factory=list)
    fresh: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 if everything asked for is done, 1 if a run or a blocking check failed."""
        return 1 if self.problems else 0


def run_everything(project: Project, *, window: PartitionKey | None = None, announce: Callable[[int], None], advance: Progress) -> Report:
    """Bring days, the window, the predictions and the submission up to date.

    ``announce`` receives the number of partitions looked at, ``advance`` one line per partition done.
    Raises StaleError if no window can be trained, PermanentError if the warehouse cannot be written, DataError if the sample
    of the submission is none.
    """
    from ltv_assets.reporting.completion import complete_documents

    report = Report()
    started = time.perf_counter()
    project.warehouse.writable()
    target = project.window_or_last(window)
    sample = project.config.data.sample_submission
    if sample is not None and project.horizon.test_days:
        sample_form(sample, project.contract)  # what is wrong with it should not be said after an hour of training
    report.warnings += [f"{message}; it is left out" for split in SPLITS for message in unknown_entries(project.config, split)]
    report.warnings += uncovered_hours(project.config, project.horizon)
    swept = project.warehouse.sweep()
    if project.lake is not None:
        project.lake.pull_all(project.warehouse)
    with staging(project.warehouse.root, RUN_FOLDER) as alive, ExitStack() as opened:
        runner = _Runner(project, opened, report, advance, {PROCESS_TAG: alive.name})
        if any(name.startswith(f"{RUN_FOLDER}-") for name in swept):
            _ = runner.instance  # opening it ends the runs of the killed process
        lineage = project.lineage()
        planned = steps(plan(lineage, up_to(lineage, target)))
        announce(len(planned))
        runner.execute(planned)
        damaged = project.warehouse.damaged()
        if damaged:
            # A file that differed from its hash when it was read: what it belongs to is stale now, and made again.
            report.problems.clear()
            report.warnings += [f"{folder}: a file differed from its hash; the partition was made again" for folder in damaged]
            runner.execute(planned)
    report.warnings += complete_documents(project, target)
    if project.lake is not None:
        try:
            project.lake.push_all(project.warehouse)
        except TransientError as error:
            report.problems.append(str(error))
    report.warnings = list(dict.fromkeys(report.warnings))
    report.warnings += project.refresh_catalogue()
    report.seconds = time.perf_counter() - started
    return report


def replay_days(project: Project, days: Sequence[PartitionKey], *, advance: Progress) -> Report:
    """Make the given days again if anything of them changed since they were made; nothing downstream is touched."""
    report = Report()
    started = time.perf_counter()
    project.warehouse.writable()
    with staging(project.warehouse.root, RUN_FOLDER) as alive, ExitStack() as opened:
        runner = _Runner(project, opened, report, advance, {PROCESS_TAG: alive.name})
        runner.execute(steps(plan(project.lineage(), Targets(days=tuple(days), windows=(), scored=(), submission=()))))
    report.warnings += project.refresh_catalogue()
    report.seconds = time.perf_counter() - started
    return report


def _end_abandoned_runs(project: Project, instance: DagsterInstance) -> None:
    """Mark Dagster runs as failed whose `ltv run` was killed; the staging folder a run names is gone when its process is."""
    from dagster import DagsterRunStatus, RunsFilter
    from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES

    # A run is written down a moment before it starts, and may never come to that.
    unended = [*IN_PROGRESS_RUN_STATUSES, DagsterRunStatus.NOT_STARTED]
    for run in instance.get_runs(RunsFilter(statuses=unended)):
        process = run.tags.get(PROCESS_TAG)
        if process is not None and not (project.warehouse.root / STAGING_FOLDER / process).is_dir():
            instance.report_run_failed(run, "the process of this `ltv run` ended before the run did; what it left undone is made again")


def _catch_up(project: Project, window: PartitionKey) -> str | None:
    """What a run left undone that was killed after it published a served model: the window competes for champion, and the
    registry hears of the champion. Returns a problem or None; costs two small reads where nothing was left."""
    from ltv_assets.tracking.client import Tracker

    if not is_judged(project.warehouse, window):
        from ltv_assets.promotion.promotion import update_champion
        from ltv_assets.reporting.model_card import describe_champion

        with suppress(LtvError):
            update_champion(project)
        describe_champion(project)
    champion = project.lineage().champion()
    return None if champion is None else Tracker(project.config, project.warehouse, bounded=True).mirror_champion(champion)


class _Runner:
    """Executes the stale part of one job for one partition and collects what went wrong."""

    def __init__(self, project: Project, opened: ExitStack, report: Report, advance: Progress, tags: dict[str, str]) -> None:
        self.project = project
        self.tags = tags
        self._opened = opened
        self.report = report
        self.advance = advance
        self._defs: Definitions | None = None

    @cached_property
    def instance(self) -> DagsterInstance:
        """Dagster's instance, opened when the first run is to be made or ended, which takes a second of imports."""
        instance = self._opened.enter_context(open_instance(self.project.warehouse.root))
        _end_abandoned_runs(self.project, instance)
        return instance

    @property
    def defs(self) -> Definitions:
        """The definitions, imported at the first stale partition: a run that finds everything fresh never pays for them."""
        if self._defs is None:
            from ltv_assets.definitions import build_defs

            self._defs = build_defs()
        return self._defs

    def execute(self, planned: Sequence[Step]) -> None:
        """Make what is not fresh, step by step; each is judged again at its turn, because those before it may have changed its inputs."""
        for step in map(self._judged, planned):
            self._make(step)
            if step.job == "train_window" and not any(s.asset == "served_model" for s in step.unfresh):
                problem = _catch_up(self.project, step.key)
                self.report.warnings += [problem] if problem else []

    def _make(self, step: Step) -> None:
        label = f"{step.job} {step.key}"
        if not step.unfresh:
            self.report.fresh += 1
            self.advance(f"{label}: fresh")
            return
        self.advance(f"{label}: {', '.join(s.asset for s in step.unfresh)} ({step.unfresh[0].why})")
        self.report.executed.append(step)
        result = self._execute(step)
        failed = _failures(result)
        self.report.problems += [f"{label}: {_THIS_COMMAND.sub(_INSTEAD, message)}" for message in failed]
        self.report.warnings += [f"{label}: {message}" for message in (*_warnings(result), *self._set_aside(step))]
        left = self._judged(step).unfresh
        if not failed and left:
            self.report.problems.append(f"{label}: {left[0].asset} is {left[0].state}: {left[0].why}")

    def _judged(self, step: Step) -> Step:
        """The step with the states of this moment."""
        lineage = self.project.lineage()
        return replace(step, states=tuple(lineage.status(s.asset, s.partition) for s in step.states))

    def _set_aside(self, step: Step) -> list[str]:
        """Files and rows that were quarantined on the way, so that nothing leaves the data unmentioned."""
        lines = []
        for asset in (s.asset for s in step.states):
            manifest = self.project.warehouse.manifest(asset, step.key)
            facts = manifest.facts if manifest else {}
            files, rows = facts.get("files_quarantined", []), facts.get("rows_quarantined", {})
            if files:
                lines.append(f"{asset}: {len(files)} files set aside, first {files[0][0]}: {files[0][1]}")
            if rows:
                lines.append(f"{asset}: {sum(rows.values())} rows set aside: " + ", ".join(f"{n} {reason}" for reason, n in rows.items()))
        return lines

    def _execute(self, step: Step) -> ExecuteInProcessResult:
        from dagster import AssetKey, DagsterExecutionInterruptedError, DagsterRunStatus

        job = self.defs.resolve_job_def(step.job)
        try:
            result = job.execute_in_process(
                instance=self.instance,
                partition_key=step.key if job.partitions_def is not None else None,
                asset_selection=[AssetKey(s.asset) for s in step.unfresh],
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                raise_on_error=False,
                tags=self.tags,
            )
        except DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        run = self.instance.get_run_by_id(result.run_id)
        if run is not None and run.status is DagsterRunStatus.CANCELED:
            raise KeyboardInterrupt
        return result


def _failures(result: ExecuteInProcessResult) -> list[str]:
    """One readable line per failed step and per failed blocking check."""
    from dagster import AssetCheckSeverity

    lines = []
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.severity == AssetCheckSeverity.ERROR:
            lines.append(f"check {check.check_name} of {check.asset_key.to_user_string()} failed: {check.description}")
    for event in result.get_step_failure_events():
        failure = event.step_failure_data
        if event.step_key and any(check.check_name in event.step_key for check in result.get_asset_check_evaluations()):
            continue
        lines.append(f"{event.step_key}: {_first_line(failure)}")
    return lines


def _first_line(failure: object) -> str:
    """The project's own message of a failed step, without the traceback around it."""
    user = getattr(failure, "user_failure_data", None)
    if user is not None and user.description:
        return str(user.description)
    error = getattr(failure, "error", None)
    while error is not None and getattr(error, "cause", None) is not None:
        error = error.cause
    message = " ".join(str(getattr(error, "message", failure)).split())
    return message.removeprefix(f"{TransientError.__module__}.{TransientError.__name__}: ")


def _warnings(result: ExecuteInProcessResult) -> list[str]:
    from dagster import AssetCheckSeverity

    return [
        f"{check.asset_key.to_user_string()}: {check.check_name}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if WARNING in check.metadata or (not check.passed and check.severity == AssetCheckSeverity.WARN)
    ]
