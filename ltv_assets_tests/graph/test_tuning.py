"""A search can be cut off and goes on, brings every trial to MLflow, and proves its winner on a window it never saw."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from ltv_assets.cli.tune import SPACE, STUDY_FILE, present_settings, with_settings
from ltv_assets.core.config import parse_config
from ltv_assets_tests.conftest import Ran, command, environment

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

TINY = "{num_leaves: 5, learning_rate: 0.1, min_data_in_leaf: 20, max_rounds: 10, patience: 5}"
CONFIG = f"""
windows: {{min_train_days: 1, max_train_days: 1}}
evaluation: {{bootstrap_repeats: 50}}
models:
  folds: 2
  buyer_classifier: &tiny {TINY}
  whale_classifier: *tiny
  revenue_head: *tiny
  increments: *tiny
  boosting: *tiny
  forest: {{trees: 5, num_leaves: 8}}
  linear: {{penalties: [0.01]}}
  stacker: {{booster: *tiny}}
"""
"""Three labelled days make two windows: one to search on, one to keep back."""


@pytest.mark.slow
def test_first_trial_is_the_configuration_itself_and_needs_no_server(ran: Ran, tmp_path: Path) -> None:
    """One trial, while the tracking server is down."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    snippet = tmp_path / "best.yaml"
    shutil.copytree(ran.warehouse, tmp_path / "warehouse")
    env = environment(ran.data, tmp_path / "warehouse", LTV_CONFIG=str(tmp_path / "tiny.yaml"), MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    done = command("ltv", "tune", "--trials", "1", "--part", "stacker", "--out", str(snippet), env=env)
    assert done.returncode == 0, done.stderr
    assert "windows 2025-10-02, 0 trials so far" in done.stderr and "trial 0: RMSLE" in done.stderr
    assert "warning: tracking server 127.0.0.1:9 does not answer" in done.stderr
    assert "no trial was better than the configuration itself" in snippet.read_text()


@pytest.mark.soak
def test_search_goes_on_where_it_was_cut_off_and_is_checked_on_the_window_kept_back(copied: Callable[[], Ran], tmp_path: Path) -> None:
    import optuna
    from mlflow.tracking import MlflowClient

    run = copied()
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG)
    env = run.environment() | {"LTV_CONFIG": str(config)}
    snippet = tmp_path / "best.yaml"

    def tune(trials: int, **more: str) -> str:
        done = command("ltv", "tune", "--trials", str(trials), "--part", "stacker", "--out", str(snippet), env=env | more)
        assert done.returncode == 0, done.stderr
        return done.stderr

    # A tracking server that is down costs a warning, not the trial.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"127.0.0.1:{closed.getsockname()[1]}"
        first = tune(1, MLFLOW_TRACKING_URI=f"http://{server}")
    assert f"warning: tracking server {server} does not answer" in first
    assert "windows 2025-10-02, 0 trials so far" in first and "trial 0: RMSLE" in first
    assert "no trial was better than the configuration itself" in snippet.read_text()

    # It is brought by the same command as everything else, once.
    synced = [command("ltv", "mlflow-sync", env=env) for _ in range(2)]
    assert [done.returncode for done in synced] == [0, 0], synced[0].stdout + synced[0].stderr
    assert [f": {n} delivered, 0 waiting" in done.stdout.split("study stacker-")[1] for n, done in zip((1, 0), synced, strict=True)] == [
        True,
        True,
    ]
    client = MlflowClient(f"sqlite:///{run.warehouse / 'mlflow.db'}")
    (brought,) = client.search_runs([experiment_id(client)])
    assert (brought.info.run_name, brought.info.status) == ("trial 0", "FINISHED")

    # A process that was killed leaves a trial that never ends, and another found something good.
    storage = optuna.storages.RDBStorage(f"sqlite:///{run.warehouse / 'tuning' / STUDY_FILE}")
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    present = study.trials[0].params
    models = parse_config(CONFIG, config).models
    assert present == present_settings(models, list(SPACE["stacker"]))
    cut_off = {**present, "boosting.num_leaves": 9}
    study.enqueue_trial(cut_off)
    running = study.ask()
    for key, allowed in SPACE["stacker"].items():
        allowed.containing(present[key]).suggest(running, key)
    found = {**present, "boosting.num_leaves": 3, "boosting.learning_rate": 0.02, "boosting.lambda_l2": 0.0}
    figures = {"2025-10-02": {"rmsle": 0.001, "rmsle_gated": 0.001, "auc": 0.5, "log_loss": 0.1}}
    distributions = study.trials[0].distributions
    study.add_trial(optuna.trial.create_trial(value=0.001, params=found, distributions=distributions, user_attrs={"figures": figures}))

    second = tune(3)
    assert "2 trials so far" in second
    study = optuna.load_study(study_name=name, storage=storage)
    states = [t.state.name for t in study.trials]
    assert states[:3] == ["COMPLETE", "FAIL", "COMPLETE"] and states.count("COMPLETE") == 3
    assert study.trials[3].params == cut_off, "the trial that was cut off is tried again"
    assert optuna.get_all_study_names(storage) == [name]

    # The snippet holds the best settings, and the window kept back contradicts what nobody could know.
    text = snippet.read_text()
    assert parse_config(text, snippet).models.boosting.num_leaves == 3
    together = pasted(yaml.safe_load(CONFIG), yaml.safe_load(text))
    assert with_settings(models, found) == parse_config(yaml.safe_dump(together), config).models
    (check,) = (v for k, v in study.user_attrs.items() if k.startswith("check of trial 2 on 2025-10-03 "))
    assert "window 2025-10-03, not searched" in text and "comparing trial 2" in second
    assert 0.1 < check[0] < 1 and check[0] != check[1] and check[2] <= check[0] - check[1] <= check[3]

    # Every finished trial is one run in MLflow, the one that could not be delivered included.
    runs = client.search_runs([experiment_id(client)])
    by_trial = {int(r.data.tags["trial"]): r.data for r in runs}
    assert sorted(by_trial) == [0, 2, 3]
    for number, data in by_trial.items():
        trial = study.trials[number]
        assert data.metrics["rmsle"] == pytest.approx(trial.value) == data.metrics["rmsle_2025-10-02"]
        assert data.params == {f"models.{key}": str(value) for key, value in trial.params.items()}
        assert set(data.metrics) == {"rmsle", "rmsle_gated", "auc", "log_loss", "rmsle_2025-10-02"}
    assert all(np.isfinite(list(data.metrics.values())).all() for data in by_trial.values())

    # Asking for no more than there is does nothing, and nothing is brought twice.
    before = json.dumps([(t.number, t.value) for t in study.trials])
    assert "as many trials as were asked for" in tune(3)
    assert json.dumps([(t.number, t.value) for t in optuna.load_study(study_name=name, storage=storage).trials]) == before
    assert len(client.search_runs([experiment_id(client)])) == 3
    assert snippet.read_text() == text


def experiment_id(client: MlflowClient) -> str:
    found = client.get_experiment_by_name("ltv-tuning")
    assert found is not None
    return str(found.experiment_id)


def pasted(config: dict[str, Any], snippet: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the snippet's keys pasted where they belong."""
    both = {k: pasted(config[k], v) if isinstance(v, dict) and isinstance(config.get(k), dict) else v for k, v in snippet.items()}
    return {**config, **both}
