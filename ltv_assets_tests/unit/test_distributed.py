"""What is decided about Dask before any worker is asked."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import Config, load_config, parse_config
from ltv_assets.core.config import load as configuration
from ltv_assets.core.errors import ConfigError, PermanentError, TransientError
from ltv_assets.core.parallel import in_order
from ltv_assets.modeling.design_matrix import Matrix
from ltv_assets.scoring.batch import Part, parts_of
from ltv_assets.training.dask_cluster import COMPARED, Cluster, fit_part, look_around, without_network, workers_of

HERE = Path("here.yaml")


class Unreachable:
    """A client that must not be asked anything."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the cluster was asked for {name}")


def test_local_engine_asks_nobody() -> None:
    assert workers_of(Config()) is None


def test_scheduler_without_dask_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"here.yaml:1: compute: .*set engine: dask"):
        parse_config("compute: {scheduler: 'tcp://10.0.0.5:8786'}\n", HERE)


@pytest.mark.parametrize("address", ["10.0.0.5:8786", "http://10.0.0.5:8786", "tcp://10.0.0.5"])
def test_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="scheduler"):
        parse_config(f"compute: {{engine: dask, scheduler: '{address}'}}\n", HERE)


def test_early_stopping_on_every_row_is_refused_with_dask_only() -> None:
    assert parse_config("models: {max_auxiliary_rows: null}\n", HERE).models.max_auxiliary_rows is None
    with pytest.raises(ConfigError, match="early stopping is not possible on Dask workers; give max_auxiliary_rows a number"):
        parse_config("models: {max_auxiliary_rows: null}\ncompute: {engine: dask}\n", HERE)


@pytest.mark.parametrize("name", ["early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change"])
def test_early_stopping_parameter_is_refused_before_a_worker_is_asked(name: str) -> None:
    cluster = Cluster(Unreachable(), 2, stop=lambda: None)  # type: ignore[arg-type]
    matrix = Matrix(np.zeros((10, 1), np.float32), ("x",), ())
    with pytest.raises(ConfigError, match=f"{name}: early stopping is not possible on Dask workers"):
        cluster.fit(matrix, np.zeros(10), {"objective": "regression", name: 5}, 10)


def test_missing_package_is_one_line_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("compute: {engine: dask}\n")
    monkeypatch.setattr(configuration, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert "pip install 'ltv-assets[dask]'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_silent_scheduler_is_a_transient_failure_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltv_assets.training.dask_cluster.CONNECT_SECONDS", 0.5)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        scheduler = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        config = Config.model_validate({"compute": {"engine": "dask", "scheduler": scheduler}})
        with pytest.raises(TransientError, match=rf"{scheduler}: no Dask scheduler answers within 0.5 s"):
            workers_of(config)


@pytest.mark.parametrize(
    ("versions", "missing", "message"),
    [
        ({"duckdb": "0.1"}, [], r"tcp://w:1 has duckdb 0.1 \(here .*install the same requirements.lock"),
        ({"ltv-assets": "0"}, [], "has ltv-assets 0"),
        ({}, ["/data"], "does not see /data; mount data.root and warehouse.root at the same paths"),
    ],
)
def test_workers_that_cannot_do_the_work_are_refused(versions: dict[str, str], missing: list[str], message: str) -> None:
    class Foreign:
        def run(self, function: Any, folders: list[str]) -> dict[str, Any]:
            return {"tcp://w:1": ({**look_around([])[0], **versions}, missing)}

    with pytest.raises(PermanentError, match=message):
        Cluster(Foreign(), 1, stop=lambda: None).check_workers([Path("/data")])  # type: ignore[arg-type]


def test_worker_sees_versions_and_folders(tmp_path: Path) -> None:
    versions, missing = look_around([str(tmp_path), str(tmp_path / "absent")])
    assert set(versions) == {"ltv-assets", *COMPARED}
    assert missing == [str(tmp_path / "absent")]


def test_results_come_in_order_and_few_are_under_way() -> None:
    under_way: list[int] = []
    most = 0

    with ThreadPoolExecutor(4) as pool:

        def submit(item: int) -> Any:
            nonlocal most
            under_way.append(item)
            most = max(most, len(under_way))
            return pool.submit(lambda: item * item)

        for index, result in enumerate(in_order(submit, range(20), ahead=3)):
            assert result == index * index
            under_way.remove(index)
    assert most == 3


@pytest.mark.parametrize("chunk_rows", [100, 40_000, 65_536, 200_000])
def test_parts_cover_every_row_once_in_whole_chunks(tmp_path: Path, chunk_rows: int) -> None:
    file = tmp_path / "flat.parquet"
    pq.write_table(pa.table({"x": np.zeros(150_000, np.int8)}), file)
    parts = list(parts_of([file], chunk_rows))
    assert [p.first for p in parts] == [0, *(p.last for p in parts[:-1])]
    assert parts[-1] == Part(file, parts[-1].first, 150_000)
    assert all(p.first % chunk_rows == 0 for p in parts)


def test_stored_text_names_no_host(tmp_path: Path) -> None:
    """One machine's share of a fit, alone: the same trees as a local fit, and no trace of where it ran."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(600, 3)).astype(np.float32)
    label = (values[:, 0] > 0).astype(np.float64)
    params = {"objective": "binary", "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    text = fit_part(0, [("10.1.2.3", 4444)], params, 3, ((), 63), [(values, label, None, None)])
    assert text is not None
    assert text.count("Tree=") == 3
    told = text.replace("[machines: ]", "[machines: 10.1.2.3:4444,10.1.2.4:5555]").replace(
        "[local_listen_port: 12400]", "[local_listen_port: 4444]"
    )
    assert told != text
    assert without_network(told) == text
