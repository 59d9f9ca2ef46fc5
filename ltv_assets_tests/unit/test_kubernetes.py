"""The files under ``deploy/kubernetes`` are what Dagster, this project and each other expect.

No cluster is asked. Where ``dagster-k8s`` is installed (extra ``k8s``) the launcher's own schema judges its part, and the
Job of a run is built with it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from dagster import AssetKey
from dagster._config import Shape, validate_config
from dagster._core.definitions.automation_tick_evaluation_context import build_run_requests_with_backfill_policies
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.instance.config import dagster_instance_config_schema

from ltv_assets.core.asset_specs import DAY_ASSETS, WINDOW_ASSETS
from ltv_assets.core.config import PROJECT_ROOT, parse_config

FOLDER = PROJECT_ROOT / "deploy" / "kubernetes"


@pytest.fixture(scope="module")
def instance() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "dagster.yaml").read_text())


@pytest.fixture(scope="module")
def launcher(instance: dict[str, Any]) -> dict[str, Any]:
    return instance["run_launcher"]["config"]


@pytest.fixture(scope="module")
def dask() -> dict[tuple[str, str], dict[str, Any]]:
    return {(d["kind"], d["metadata"]["name"]): d for d in yaml.safe_load_all((FOLDER / "dask.yaml").read_text())}


def environment(launcher: dict[str, Any]) -> dict[str, str]:
    return dict(v.split("=", 1) for v in launcher["env_vars"] if "=" in v)


def test_dagster_accepts_the_instance(instance: dict[str, Any]) -> None:
    judged = validate_config(Shape({**dagster_instance_config_schema(), "concurrency": dict}), instance)
    assert judged.success, judged.errors


def test_instance_with_a_wrong_key_would_be_noticed(instance: dict[str, Any]) -> None:
    wrong = {**instance, "run_monitoring": {**instance["run_monitoring"], "poll_seconds": 3}}
    assert not validate_config(Shape({**dagster_instance_config_schema(), "concurrency": dict}), wrong).success


def test_launcher_s_own_schema_accepts_its_part(instance: dict[str, Any], launcher: dict[str, Any]) -> None:
    dagster_k8s = pytest.importorskip("dagster_k8s", reason="pip install 'ltv-assets[k8s]'")
    assert (instance["run_launcher"]["module"], instance["run_launcher"]["class"]) == ("dagster_k8s", "K8sRunLauncher")
    judged = validate_config(dagster_k8s.K8sRunLauncher.config_type(), launcher)
    assert judged.success, judged.errors
    assert not validate_config(dagster_k8s.K8sRunLauncher.config_type(), {**launcher, "image": "x"}).success


def test_job_of_a_run_is_what_was_asked_for(launcher: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dagster_k8s", reason="pip install 'ltv-assets[k8s]'")
    from dagster import DagsterRun
    from dagster_k8s import launcher as module
    from dagster_k8s.job import construct_dagster_k8s_job

    monkeypatch.setattr(module, "load_kubernetes_config", lambda **_: None)
    for name in launcher["env_vars"]:
        monkeypatch.setenv(name.split("=")[0], "told")
    opened = module.K8sRunLauncher(
        **{**launcher, "job_image": "ltv-assets:1"}, k8s_client_batch_api=mock.Mock(), k8s_client_core_api=mock.Mock()
    )
    context = opened.get_container_context_for_run(DagsterRun(job_name="ingest_days"))
    settings = context.get_k8s_job_config(job_image=None, run_launcher=opened)
    job = construct_dagster_k8s_job(settings, ["dagster"], "run-1", context.run_k8s_config).to_dict()
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["image"] == "ltv-assets:1"
    assert container["resources"]["limits"] == {"memory": "6Gi"}
    assert {e["name"]: e["value"] for e in container["env"]}["LTV_WAREHOUSE"] == "/mnt/ltv/warehouse"
    assert {m["mount_path"] for m in container["volume_mounts"]} >= {"/mnt/ltv", "/etc/ltv"}
    claims = [v["persistent_volume_claim"]["claim_name"] for v in pod["volumes"] if v.get("persistent_volume_claim")]
    assert claims == ["ltv"]
    assert pod["security_context"]["run_as_non_root"] is True
    assert job["spec"]["backoff_limit"] == 0
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ltv"
    assert context.namespace == "ltv"


def test_backfill_makes_one_run_per_partition() -> None:
    """Asked of Dagster's own planner: three partitions of every asset on a clock are three runs of one partition each."""
    from ltv_assets.definitions import build_defs

    graph = build_defs().resolve_asset_graph()
    for assets in (DAY_ASSETS, WINDOW_ASSETS):
        keys = [AssetKey(asset) for asset in assets]
        definition = graph.get(keys[0]).partitions_def
        assert definition is not None
        partitions = list(definition.get_partition_keys()[:3])
        wanted = [AssetKeyPartitionKey(key, partition) for key in keys for partition in partitions]
        runs = build_run_requests_with_backfill_policies(wanted, graph, mock.Mock())
        assert sorted((run.partition_key or "", len(run.asset_selection or ())) for run in runs) == [(p, len(keys)) for p in partitions]


def test_runs_find_data_and_warehouse_on_the_shared_volume(launcher: dict[str, Any], instance: dict[str, Any]) -> None:
    mounts = {m["name"]: m["mountPath"] for m in launcher["volume_mounts"]}
    assert set(mounts) == {v["name"] for v in launcher["volumes"]}
    told = environment(launcher)
    config = parse_config((FOLDER / "config.yaml").read_text(), FOLDER / "config.yaml")
    for path in (told["LTV_DATA_ROOT"], told["LTV_WAREHOUSE"], instance["compute_logs"]["config"]["base_dir"]):
        assert Path(path).is_relative_to(mounts["ltv"])
    assert (config.data.root, config.warehouse.root) == (Path(told["LTV_DATA_ROOT"]), Path(told["LTV_WAREHOUSE"]))
    assert Path(told["LTV_CONFIG"]).is_relative_to(mounts["ltv-config"])
    assert str(config.compute.threads) == launcher["resources"]["requests"]["cpu"]


def test_workers_are_where_the_configuration_looks_for_them(dask: dict[tuple[str, str], dict[str, Any]], launcher: dict[str, Any]) -> None:
    config = parse_config((FOLDER / "config.yaml").read_text(), FOLDER / "config.yaml")
    service = dask["Service", "dask-scheduler"]
    assert config.compute.engine == "dask"
    assert config.compute.scheduler == f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    worker = dask["Deployment", "dask-worker"]["spec"]["template"]
    command = worker["spec"]["containers"][0]["command"]
    assert config.compute.scheduler in command
    assert "--nanny" in command
    mounted = worker["spec"]["containers"][0]["volumeMounts"]
    assert [m["mountPath"] for m in mounted if m["name"] == "ltv"] == [
        m["mountPath"] for m in launcher["volume_mounts"] if m["name"] == "ltv"
    ]
    assert (
        worker["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == launcher["volumes"][0]["persistentVolumeClaim"]["claimName"]
    )
    selector = dask["Deployment", "dask-scheduler"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= selector.items()


def test_only_the_project_s_pods_reach_dask(dask: dict[tuple[str, str], dict[str, Any]], launcher: dict[str, Any]) -> None:
    policy = dask["NetworkPolicy", "dask-from-ltv-only"]["spec"]
    allowed = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    guarded = set(policy["podSelector"]["matchExpressions"][0]["values"])
    for name in ("dask-scheduler", "dask-worker"):
        labels = dask["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        assert labels["app"] in guarded
        assert allowed.items() <= labels.items()
    assert allowed.items() <= launcher["labels"].items()
    assert len({d["metadata"]["namespace"] for d in dask.values()} | {launcher["job_namespace"]}) == 1


def test_image_installs_extras_that_exist() -> None:
    extras = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [asked] = re.findall(r"'\.\[(.*?)\]'", (FOLDER / "Dockerfile").read_text())
    assert set(asked.split(",")) <= set(extras)


def test_serving_pods_run_a_command_that_exists_and_probe_routes_that_exist() -> None:
    from ltv_assets.cli.app import main
    from ltv_assets.core.config import ServingConfig
    from ltv_assets.core.contract import load_contract
    from ltv_assets.serving.app import TOKEN
    from ltv_assets.serving.limits import OPEN_PATHS
    from ltv_assets.serving.openapi import routes

    service, deployment = yaml.safe_load_all((FOLDER / "serving.yaml").read_text())
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    program, command, *options = container["command"]
    assert (program, main.commands[command].make_context(command, list(options)).params["host"]) == ("ltv", "0.0.0.0")
    probes = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == set(OPEN_PATHS) and {path.strip("/") for path in probes} < routes(load_contract()).keys()
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["terminationGracePeriodSeconds"] > ServingConfig().stop_seconds + 5
    assert TOKEN in {variable["name"] for variable in container["env"]}
