"""Two Dask workers give what one process gives: the same bytes of data, models as good, and no torn partition when one dies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from ltv_assets import distributed
from ltv_assets.config import PROJECT_ROOT, Config, ModelsConfig, SamplingConfig
from ltv_assets.distributed import Cluster, workers_of
from ltv_assets.features.bench import find_days
from ltv_assets.features.flatten import flatten_files
from ltv_assets.features.registry import load_registry
from ltv_assets.features.schema import categorical_names, feature_names
from ltv_assets.modeling.classifier import BuyerClassifier
from ltv_assets.modeling.design import Matrix, encode
from ltv_assets.modeling.gating import BuyerGating
from ltv_assets.modeling.regressor import RevenueRegressor
from ltv_assets.modeling.stages import WindowContext, buyer_classifier, buyer_gating, hhistus_plan, histos_plan, revenue_regressor
from ltv_assets.modeling.trees import Trainer
from ltv_assets.modeling.window import WindowData, prepare_window
from ltv_assets.scoring import score_files
from ltv_assets.simulator import simulate
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.windows import read_served
from ltv_assets_tests.dying_worker import fit_part_and_die
from ltv_assets_tests.graph.conftest import Ran

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


@dataclass(frozen=True)
class Fitted:
    """The stages with served boosters, fitted in one place."""

    classifier: BuyerClassifier
    gating: BuyerGating
    regressor: RevenueRegressor

    def figures(self, last: WindowData) -> dict[str, float]:
        """AUC of the classifier and RMSLE of two-part score and reference on a later day."""
        matrix = encode(self.classifier.encoder, last.X)
        odds = self.classifier.log_odds(matrix)
        score = self.classifier.probability(odds) * self.regressor.log_revenue_if_buyer(matrix)
        return {
            "auc": float(roc_auc_score(last.d7 > 0, odds)),
            "rmsle": float(np.sqrt(np.mean((score - last.log_d7) ** 2))),
            "reference_rmsle": float(np.sqrt(np.mean((self.regressor.reference_score(matrix) - last.log_d7) ** 2))),
        }


@pytest.fixture(scope="module")
def both(cluster: Cluster, flat: dict[str, Path]) -> tuple[Fitted, Fitted, WindowData]:
    """The same window fitted here and on the workers, and the day after it."""
    *train, last = sorted(flat)
    here = WindowContext(window(flat, train), ModelsConfig(), SamplingConfig(), seed=0, threads=2)
    there = replace(here, remote=cluster.fit)
    there.__dict__["design"] = here.design  # the same encodings, made once
    fitted = []
    for context in (here, there):
        classifier = buyer_classifier(context, histos_plan(context))
        gating = buyer_gating(context, classifier)
        fitted.append(Fitted(classifier, gating, revenue_regressor(context, hhistus_plan(context), gating)))
    return fitted[0], fitted[1], window(flat, [last])


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


def test_error_in_a_task_is_the_error_of_a_local_run(cluster: Cluster, tmp_path: Path, simulated_small: Path) -> None:
    (_, _), files = next(iter(find_days(simulated_small).items()))
    registry = load_registry(PROJECT_ROOT / "config" / "features.yaml")
    torn = tmp_path / files[0].path.parent.name / "torn.parquet"
    torn.parent.mkdir()
    content = bytearray(files[0].path.read_bytes())
    content[100 : len(content) // 2] = b"\0" * (len(content) // 2 - 100)
    torn.write_bytes(content)
    messages = []
    for workers in (None, cluster):
        with pytest.raises(Exception) as caught:
            flatten_files(
                [type(files[0])(torn, files[0].datetime_key)], registry=registry, labelled=True, out=tmp_path / "x.parquet", workers=workers
            )
        messages.append((type(caught.value), str(caught.value)))
        assert not (tmp_path / "x.parquet").exists()
    assert messages[0] == messages[1]


@pytest.mark.parametrize("chunk_rows", [1000, 65_536])
def test_scores_are_byte_identical(cluster: Cluster, ran: Ran, tmp_path: Path, chunk_rows: int) -> None:
    warehouse = Warehouse(ran.warehouse)
    models = read_served(warehouse, warehouse.keys("served_model")[-1])
    features = feature_names(load_registry(PROJECT_ROOT / "config" / "features.yaml"))
    files = [f for day in warehouse.keys("flattened_features")[:2] for f in warehouse.files("flattened_features", day)]
    for name, workers in (("here", None), ("there", cluster)):
        rows = score_files(models, files, features, tmp_path / name, chunk_rows=chunk_rows, day="2025-10-01", workers=workers)
        assert rows == sum(pq.read_metadata(f).num_rows for f in files)
    assert (tmp_path / "here").read_bytes() == (tmp_path / "there").read_bytes()


def test_models_of_two_workers_are_as_good(both: tuple[Fitted, Fitted, WindowData]) -> None:
    here, there, last = both
    one, two = here.figures(last), there.figures(last)
    print(one, two)
    assert abs(one["auc"] - two["auc"]) <= 0.005
    assert abs(one["rmsle"] - two["rmsle"]) <= 0.003
    assert abs(one["reference_rmsle"] - two["reference_rmsle"]) <= 0.003


def test_tree_counts_are_chosen_here_and_kept_there(both: tuple[Fitted, Fitted, WindowData]) -> None:
    here, there, _ = both
    assert there.classifier.rounds == here.classifier.rounds == there.classifier.model.n_trees
    assert there.regressor.rounds == here.regressor.rounds
    assert there.regressor.reference.n_trees == there.regressor.rounds["reference"]
    for one, two in (
        (here.classifier.model, there.classifier.model),
        (here.regressor.head, there.regressor.head),
        (here.regressor.reference, there.regressor.reference),
        (here.regressor.increments["d14"], there.regressor.increments["d14"]),
    ):
        assert "[num_machines: 1]" in one.text
        assert "[num_machines: 2]" in two.text or two is there.regressor.head  # payers may be too few for two


def test_models_come_back_as_text_without_a_trace_of_the_cluster(both: tuple[Fitted, Fitted, WindowData]) -> None:
    _, there, _ = both
    for stage in (there.classifier, there.gating, there.regressor):
        files = stage.to_files()
        assert {Path(name).suffix for name in files} == {".txt", ".json"}
        assert not [name for name, content in files.items() if b"127.0.0.1" in content]


def test_same_rows_on_as_many_workers_give_the_same_text(cluster: Cluster) -> None:
    rng = np.random.default_rng(0)
    matrix = Matrix(rng.normal(size=(5000, 4)).astype(np.float32), tuple("abcd"), ())
    label = (matrix.values[:, 0] + rng.normal(size=5000) > 1).astype(np.float64)
    rows = np.flatnonzero(rng.random(5000) < 0.7)
    trainer = Trainer(0, 2, cluster.fit)
    params = {"objective": "binary", "num_leaves": 7}
    texts = {trainer.train(matrix, label[rows], params, 10, start=-1.0, rows=rows, served=True).text for _ in range(3)}
    assert len(texts) == 1


def test_workers_are_reached_from_this_machine_only(cluster: Cluster) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert len(cluster.client.nthreads()) == 2
    assert len(listening) >= 3
    assert set(listening) == {"127.0.0.1"}


class Bench:
    """A finished local run whose classifier is to be fitted again, now on workers."""

    def __init__(self, ran: Ran, deaths: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from ltv_assets.assets import publishing

        (tmp_path / "deaths").mkdir()
        self.deaths = tmp_path / "deaths"
        (tmp_path / "dask.yaml").write_text(DASK)
        for name, value in (("LTV_CONFIG", tmp_path / "dask.yaml"), ("LTV_WAREHOUSE", ran.warehouse), ("LTV_DATA_ROOT", ran.data)):
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(publishing, "RETRY_SECONDS", 0.1)
        monkeypatch.setattr(distributed, "fit_part", partial(fit_part_and_die, self.deaths, deaths))

    def materialize(self) -> tuple[bool, int]:
        """Fit the classifier of the newest window; (success, retries asked for)."""
        import dagster as dg

        from ltv_assets.definitions import build_defs
        from ltv_assets.project import Project

        job = build_defs().resolve_job_def("train_window")
        key = str(Project.open().horizon.last_window)
        result = job.execute_in_process(
            instance=dg.DagsterInstance.ephemeral(),
            partition_key=key,
            asset_selection=[dg.AssetKey("buyer_classifier")],
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            raise_on_error=False,
        )
        retries = [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY" and e.step_key == "buyer_classifier"]
        return result.success, len(retries)

    def partition(self) -> dict[str, bytes]:
        """Every file of the classifier's partition."""
        folder = Path(os.environ["LTV_WAREHOUSE"]) / "models"
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/buyer_classifier/**/*") if p.is_file()}

    def staged(self) -> list[Path]:
        """What is left in the staging area."""
        return list((Path(os.environ["LTV_WAREHOUSE"]) / ".staging").glob("*"))


def test_killed_worker_is_replaced_and_the_retry_succeeds(
    cluster: Cluster, copied: Callable[[], Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(copied(), 1, tmp_path, monkeypatch)
    before = bench.partition()
    assert bench.materialize() == (True, 1)
    assert len(list(bench.deaths.iterdir())) == 1
    after = bench.partition()
    assert after != before
    from ltv_assets.project import Project

    project = Project.open()
    key = str(project.horizon.last_window)
    models = project.warehouse.artifacts("buyer_classifier", key)  # every file as its manifest says
    assert b"[num_machines: 2]" in models["buyer_booster.txt"]
    assert bench.staged() == []


def test_worker_that_is_killed_every_time_fails_the_step_and_leaves_the_old_partition(
    cluster: Cluster, copied: Callable[[], Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(copied(), 99, tmp_path, monkeypatch)
    before = bench.partition()
    assert before
    assert bench.materialize() == (False, 2)
    assert len(list(bench.deaths.iterdir())) == 3
    assert bench.partition() == before
    assert bench.staged() == []
