"""The graph as people see it: a changed key, owner, partition, job, sensor or schedule is a reviewed diff.

``definitions_snapshot.json`` beside this file is the record. After an intended change write it again with
``LTV_UPDATE_SNAPSHOTS=1 python -m pytest ltv_assets_tests/graph/test_definitions_snapshot.py`` and review the diff.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ltv_assets.core.config import PROJECT_ROOT

SNAPSHOT = Path(__file__).with_name("definitions_snapshot.json")


@pytest.fixture
def definitions(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The definitions of the shipped full configuration, whose dates do not depend on what lies on the disk."""
    place(tmp_path / "data")
    monkeypatch.setenv("LTV_CONFIG", str(PROJECT_ROOT / "config/config.yaml"))
    from ltv_assets.definitions import build_defs

    return build_defs()


def partitions(definition: dg.PartitionsDefinition | None) -> str | None:
    if definition is None:
        return None
    keys = definition.get_partition_keys()
    return f"{type(definition).__name__} {keys[0]} .. {keys[-1]}"


def mapping(spec: dg.AssetDep) -> str:
    return "" if spec.partition_mapping is None else " by " + " ".join(str(spec.partition_mapping).split())


def described(definitions: dg.Definitions) -> dict[str, Any]:
    """Everything of the definitions that somebody relies on, as plain JSON."""
    repository = definitions.get_repository_def()
    graph = repository.asset_graph
    assets = {}
    for definition in repository.assets_defs_by_key.values():
        for spec in definition.specs:
            if isinstance(definition, dg.AssetChecksDefinition):
                continue
            assets[spec.key.to_user_string()] = {
                "group": spec.group_name,
                "owners": list(spec.owners),
                "kinds": sorted(spec.kinds),
                "code_version": spec.code_version,
                "partitions": partitions(spec.partitions_def),
                "deps": sorted(d.asset_key.to_user_string() + mapping(d) for d in spec.deps),
                "automation": spec.automation_condition.get_label() if spec.automation_condition else None,
                "description": spec.description,
            }
    checks = {
        f"{key.asset_key.to_user_string()}.{key.name}": {
            "blocking": graph.get(key).blocking,
            "partitions": partitions(graph.get(key).partitions_def),
            "description": graph.get(key).description,
        }
        for key in graph.asset_check_keys
    }
    jobs = {}
    for job in repository.get_all_jobs():
        if not job.name.startswith("__"):
            nodes = sorted(node.name for node in job.nodes)
            jobs[job.name] = {"description": job.description, "partitions": partitions(job.partitions_def), "nodes": nodes}
    sensors = {
        s.name: {
            "status": s.default_status.value,
            "interval": s.minimum_interval_seconds,
            "jobs": sorted(t.job_name for t in s.targets) if not isinstance(s, dg.AutomationConditionSensorDefinition) else None,
            "description": s.description,
        }
        for s in repository.sensor_defs
    }
    schedules = {
        s.name: {
            "status": s.default_status.value,
            "cron": s.cron_schedule,
            "timezone": s.execution_timezone,
            "job": s.job_name,
            "description": s.description,
        }
        for s in repository.schedule_defs
    }
    resources = sorted(name for name in repository.get_top_level_resources())
    return {"assets": assets, "checks": checks, "jobs": jobs, "sensors": sensors, "schedules": schedules, "resources": resources}


def test_definitions_are_what_was_reviewed(definitions: dg.Definitions) -> None:
    now = json.dumps(described(definitions), indent=1, sort_keys=True) + "\n"
    if os.environ.get("LTV_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(now)
    before = SNAPSHOT.read_text()
    changed = "".join(difflib.unified_diff(before.splitlines(True), now.splitlines(True), "reviewed", "now", n=2))
    assert not changed, f"the definitions changed; if that is intended, see the head of this file:\n{changed}"


def test_everything_is_explained_and_nothing_starts_by_itself(definitions: dg.Definitions) -> None:
    found = described(definitions)
    for family in ("assets", "checks", "jobs", "sensors", "schedules"):
        for name, facts in found[family].items():
            assert len(facts["description"] or "") > 20, f"{family} {name} has no description"
    for family in ("sensors", "schedules"):
        assert {facts["status"] for facts in found[family].values()} == {"STOPPED"}
    assert {"ingest_days", "train_window", "score_days", "make_submission", "backtest"} <= set(found["jobs"])


def test_definitions_load_without_any_data(place: Any, tmp_path: Path) -> None:
    from ltv_assets.definitions import build_defs

    place(tmp_path / "nothing")
    dg.Definitions.validate_loadable(build_defs())
