"""Two Dask workers give what one process gives: the same bytes of data, models as good, and no torn partition when one dies.

CI flattens a day and fits one booster on the workers; whole models and dying workers are soak.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ltv_assets.cli.flatten_benchmark import find_days
from ltv_assets.core.config import PROJECT_ROOT, Config, ModelsConfig, SamplingConfig, StackerConfig
from ltv_assets.defs import publication as publishing
from ltv_assets.features.flatten import files as flatten_day
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.modeling.boosting import Trainer
from ltv_assets.modeling.dataset import WindowData, prepare_window
from ltv_assets.modeling.design_matrix import Matrix
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.stages import WindowContext, fit_window
from ltv_assets.scoring.batch import score_files
from ltv_assets.simulator import simulate
from ltv_assets.state.project import Project
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.training import dask_cluster as distributed
from ltv_assets.training.dask_cluster import Cluster, workers_of
from ltv_assets_tests.dying_worker import fit_part_and_die, flatten_block_and_die

pytestmark = pytest.mark.slow

DASK = "data: {dates: auto}\nwindows: {min_train_days: 2, max_train_days: 7}\ncompute: {engine: dask}\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes on this machine, as ``engine: dask`` starts them."""
    found = workers_of(Config.model_validate({"compute": {"engine": "dask", "threads": 2}}))
    assert found is not None
    yield found
    distributed.close_clusters()


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Flattened days by name: four to train on, one to judge by."""
    root = tmp_path_factory.mktemp("dask")
    simulate(root, train_days=5, test_days=0, rows_per_hour=300, seed=11)
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    found = {}
    for (_, day), files in find_days(root).items():
        found[day] = root / f"{day}.parquet"
        flatten_files(files, registry=registry, labelled=True, out=found[day])
    return found


def window(files: dict[str, Path], days: list[str]) -> WindowData:
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    table = pd.concat([pq.read_table(files[day]).to_pandas().assign(_day=day) for day in days], ignore_index=True)
    X = table[list(feature_names(registry))].copy()
    for column in categorical_names(registry):
        X[column] = X[column].astype("category")
    return prepare_window(X, table[["iap_revenue_d7", "iap_revenue_d14", "iap_revenue_d28"]], table["_day"], table["row_id"])


@pytest.fixture(scope="module")
def both(cluster: Cluster, flat: dict[str, Path]) -> tuple[WindowModels, WindowModels, WindowData]:
    """The same window fitted here and on the workers, without a stacker, and the day after it."""
    *train, last = sorted(flat)
    settings = ModelsConfig(stacker=StackerConfig(enabled=False))
    here = WindowContext(window(flat, train), settings, SamplingConfig(), seed=0, threads=2)
    there = replace(here, remote=cluster.fit)
    there.__dict__["design"] = here.design  # the same encodings, made once
    return fit_window(here), fit_window(there), window(flat, [last])


def test_flattened_day_is_byte_identical(cluster: Cluster, tmp_path: Path, simulated_small: Path) -> None:
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    (_, _), files = next(iter(find_days(simulated_small).items()))
    files = [*files, files[3]]  # an hour that was delivered twice: every row of it is set aside
    arguments: dict[str, Any] = {"registry": registry, "labelled": True, "sampling_fraction": 0.7, "seed": 1}
    here = flatten_files(files, out=tmp_path / "here.parquet", **arguments)
    there = flatten_files(files, out=tmp_path / "there.parquet", workers=cluster, **arguments)
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()
    assert here.quarantine.equals(there.quarantine)
    assert here.rows_quarantined == there.rows_quarantined == {"row_id repeated": pq.read_metadata(files[3].path).num_rows}
    assert (here.rows_out, here.missing, here.warnings) == (there.rows_out, there.missing, there.warnings)


@pytest.mark.soak
def test_worker_killed_while_flattening_changes_no_byte(
    cluster: Cluster, tmp_path: Path, simulated_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    (_, _), files = next(iter(find_days(simulated_small).items()))
    flatten_files(files, registry=registry, labelled=True, out=tmp_path / "here.parquet")
    (tmp_path / "deaths").mkdir()
    monkeypatch.setattr(flatten_day, "flatten_block", partial(flatten_block_and_die, tmp_path / "deaths"))
    flatten_files(files, registry=registry, labelled=True, out=tmp_path / "there.parquet", workers=cluster)
    assert (tmp_path / "deaths" / "died").exists()
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()
    cluster.wait_for_workers()


@pytest.mark.soak
def test_file_that_a_worker_cannot_decode_is_set_aside_as_here(cluster: Cluster, tmp_path: Path, simulated_small: Path) -> None:
    (_, _), files = next(iter(find_days(simulated_small).items()))
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    torn = tmp_path / files[0].path.parent.name / "torn.parquet"
    torn.parent.mkdir()
    content = bytearray(files[0].path.read_bytes())
    content[100 : len(content) // 2] = b"\0" * (len(content) // 2 - 100)
    torn.write_bytes(content)
    day = [type(files[0])(torn, files[0].datetime_key), *files[1:3]]
    here, there = (
        flatten_files(day, registry=registry, labelled=True, out=tmp_path / name, workers=workers)
        for name, workers in (("here.parquet", None), ("there.parquet", cluster))
    )
    assert [file.path for file in there.files_aside] == [torn]
    assert there.files_aside == here.files_aside, "the reason is the one of a local run"
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


@pytest.mark.soak
@pytest.mark.parametrize("chunk_rows", [1000, 65_536])
def test_scores_are_byte_identical(
    cluster: Cluster, both: tuple[WindowModels, WindowModels, WindowData], flat: dict[str, Path], tmp_path: Path, chunk_rows: int
) -> None:
    features = feature_names(load_registry(PROJECT_ROOT / "config" / "features.yaml"))
    files = list(flat.values())[:2]
    for name, workers in (("here", None), ("there", cluster)):
        rows = score_files(both[0], files, features, tmp_path / name, chunk_rows=chunk_rows, day="2025-10-01", workers=workers)
        assert rows == sum(pq.read_metadata(f).num_rows for f in files)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def figures(models: WindowModels, last: WindowData) -> dict[str, float]:
    """AUC of the probability and RMSLE of the served score and of the reference on a later day."""

    def rmsle(usd: Any) -> float:
        return float(np.sqrt(np.mean((np.log1p(usd) - last.log_d7) ** 2)))

    scored = models.score(last.X)
    auc = float(roc_auc_score(last.d7 > 0, scored["buyer_probability"]))
    return {"auc": auc, "rmsle": rmsle(scored["ltv_d7"]), "reference": rmsle(models.reference_ltv(last.X))}


@pytest.mark.soak
def test_models_of_two_workers_are_as_good(both: tuple[WindowModels, WindowModels, WindowData]) -> None:
    here, there = figures(both[0], both[2]), figures(both[1], both[2])
    print(here, there)
    assert abs(here["auc"] - there["auc"]) <= 0.005
    assert abs(here["rmsle"] - there["rmsle"]) <= 0.003
    assert abs(here["reference"] - there["reference"]) <= 0.003


@pytest.mark.soak
def test_tree_counts_are_chosen_here_and_kept_there(both: tuple[WindowModels, WindowModels, WindowData]) -> None:
    here, there, _ = both
    assert there.classifier.rounds == here.classifier.rounds == there.classifier.model.n_trees
    assert there.regressor.rounds == here.regressor.rounds
    assert there.regressor.reference.n_trees == there.regressor.rounds["reference"]
    for one, two in (
        (here.classifier.model, there.classifier.model),
        (here.regressor.reference, there.regressor.reference),
        (here.regressor.increments["d14"], there.regressor.increments["d14"]),
    ):
        assert "[num_machines: 1]" in one.text
        assert "[num_machines: 2]" in two.text


@pytest.mark.soak
def test_models_come_back_as_text_without_a_trace_of_the_cluster(both: tuple[WindowModels, WindowModels, WindowData]) -> None:
    files = both[1].to_files()
    assert {Path(name).suffix for name in files} == {".txt", ".json"}
    assert not [name for name, content in files.items() if b"127.0.0.1" in content]
    assert WindowModels.from_files(files).to_files() == files


def test_same_rows_on_as_many_workers_give_the_same_text(cluster: Cluster) -> None:
    rng = np.random.default_rng(0)
    matrix = Matrix(rng.normal(size=(5000, 4)).astype(np.float32), tuple("abcd"), ())
    label = (matrix.values[:, 0] + rng.normal(size=5000) > 1).astype(np.float64)
    rows = np.flatnonzero(rng.random(5000) < 0.7)
    trainer = Trainer(0, 2, cluster.fit)
    params = {"objective": "binary", "num_leaves": 7}
    texts = {trainer.train(matrix, label[rows], params, 10, start=-1.0, rows=rows, served=True).text for _ in range(3)}
    assert len(texts) == 1


@pytest.mark.soak
def test_scheduler_that_runs_already_is_joined_and_left_running(cluster: Cluster, tmp_path: Path, simulated_small: Path) -> None:
    address = cluster.client.scheduler_info(n_workers=0)["address"]
    compute = {"engine": "dask", "scheduler": address}
    joined = workers_of(Config.model_validate({"compute": compute, "data": {"root": simulated_small}}))
    assert joined is not None
    assert joined is not cluster
    (_, _), files = next(iter(find_days(simulated_small).items()))
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    for name, workers in (("here", None), ("there", joined)):
        flatten_files(files[:4], registry=registry, labelled=True, out=tmp_path / name, workers=workers)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()
    joined.close()
    assert cluster.is_alive
    assert len(cluster.client.nthreads()) == 2


def test_workers_are_reached_from_this_machine_only(cluster: Cluster) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(cluster.client.nthreads()) == 2
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


def make(job: str, partition: str, *assets: str) -> tuple[bool, int]:
    """Run some assets of a job in this process; (success, retries asked for)."""
    import dagster as dg

    from ltv_assets.definitions import build_defs

    result = (
        build_defs()
        .resolve_job_def(job)
        .execute_in_process(
            instance=dg.DagsterInstance.ephemeral(),
            partition_key=partition,
            asset_selection=[dg.AssetKey(a) for a in assets],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
    )
    return result.success, len([e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"])


def newest_window() -> str:
    return str(Project.open().horizon.last_window)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, simulated_small: Path) -> Path:
    """A warehouse with a classifier fitted in one process."""
    warehouse = tmp_path_factory.mktemp("trained") / "warehouse"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTV_DATA_ROOT", str(simulated_small))
        patch.setenv("LTV_WAREHOUSE", str(warehouse))
        for day in Project.open().horizon.train_days:
            assert make("ingest_days", str(day), "raw_partitions", "flattened_features") == (True, 0)
        assert make("train_window", newest_window(), "histos_train", "buyer_classifier") == (True, 0)
    return warehouse


class Bench:
    """A warehouse whose classifier is to be fitted again, now on workers that die ``deaths`` times."""

    def __init__(self, trained: Path, data: Path, deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warehouse = tmp_path / "warehouse"
        shutil.copytree(trained, self.warehouse)
        self.deaths = tmp_path / "deaths"
        self.deaths.mkdir()
        (tmp_path / "dask.yaml").write_text(DASK)
        for name, value in (("LTV_CONFIG", tmp_path / "dask.yaml"), ("LTV_WAREHOUSE", self.warehouse), ("LTV_DATA_ROOT", data)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(publishing, "RETRY_SECONDS", 0.1)
        monkeypatch.setattr(distributed, "fit_part", partial(fit_part_and_die, self.deaths, deaths))

    def fit(self) -> tuple[bool, int]:
        """Fit the classifier of the newest window."""
        return make("train_window", newest_window(), "buyer_classifier")

    def partition(self) -> dict[str, bytes]:
        """Every file of the classifier's partition."""
        return {str(p): p.read_bytes() for p in self.warehouse.glob("models/*/buyer_classifier/**/*") if p.is_file()}

    def staged(self) -> list[Path]:
        """What is left in the staging area."""
        return list((self.warehouse / ".staging").glob("*"))


@pytest.mark.soak
def test_killed_worker_is_replaced_and_the_retry_succeeds(
    cluster: Cluster, trained: Path, simulated_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(trained, simulated_small, 1, tmp_path, monkeypatch)
    before = bench.partition()
    assert bench.fit() == (True, 1)
    assert len(list(bench.deaths.iterdir())) == 1
    assert bench.partition() != before
    files = Warehouse(bench.warehouse).artifacts("buyer_classifier", newest_window())  # every file as its manifest says
    assert b"[num_machines: 2]" in files["buyer_booster.txt"]
    assert bench.staged() == []


@pytest.mark.soak
def test_worker_that_is_killed_every_time_fails_the_step_and_leaves_the_old_partition(
    cluster: Cluster, trained: Path, simulated_small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(trained, simulated_small, 99, tmp_path, monkeypatch)
    before = bench.partition()
    assert before
    assert bench.fit() == (False, publishing.MAX_RETRIES)
    assert len(list(bench.deaths.iterdir())) == publishing.MAX_RETRIES + 1
    assert bench.partition() == before
    assert bench.staged() == []
