"""A window's served model as an MLflow model: a folder of sealed text files that a server can load without pickle.

What belongs here: what such a folder holds, its signature, and handing it to a tracking server. What does not: which
window is champion (``promotion/promotion.py``), when a server is asked and what happens if it does not answer (``tracking/client.py``).
Next to read: ``online.py``, which the server runs.
"""

from __future__ import annotations

import json
import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltv_assets.core.config import Config
from ltv_assets.core.contract import Contract, contract_of
from ltv_assets.core.errors import ModelFileError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.impressions import example_impression
from ltv_assets.scoring.online import CONTRACT, ERROR_COLUMN, LISTING, MODELS, REGISTRY, SCHEMA_VERSION, OnlineModel, input_columns
from ltv_assets.scoring.window_model import require_same_features
from ltv_assets.storage.warehouse import Warehouse

if TYPE_CHECKING:
    from mlflow.models import ModelSignature
    from mlflow.tracking import MlflowClient

REQUIREMENTS = ("ltv-assets", "mlflow", "duckdb", "lightgbm", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy")


def publish(client: MlflowClient, run_id: str, config: Config, warehouse: Warehouse, window: PartitionKey) -> str:
    """Store a window's served model among the artifacts of an MLflow run; returns its address for the registry.

    Raises StaleError if the window has no served model that the present features belong to, ModelFileError if a file is
    damaged, and whatever the server raises.
    """
    # A version's files must never change, and a window that is trained again may keep its run.
    artifact = f"served_model_{warehouse.fingerprint('served_model', window)}"
    with tempfile.TemporaryDirectory(prefix="ltv-model-") as temporary:
        folder = Path(temporary) / artifact
        write_model(config, warehouse, window, folder)
        client.log_artifacts(run_id, str(folder), artifact)
    return f"{client.get_run(run_id).info.artifact_uri}/{artifact}"


def write_model(config: Config, warehouse: Warehouse, window: PartitionKey, folder: Path) -> None:
    """Write the MLflow model of a window into ``folder``, which must not exist yet; nothing is sent anywhere.

    The finished files are loaded and score the invented example before they count as a model.
    """
    import pandas as pd
    from mlflow import pyfunc

    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    example = pd.DataFrame([example_impression(contract_of(config))])
    with tempfile.TemporaryDirectory(prefix="ltv-model-") as temporary:
        data = Path(temporary) / "ltv"
        write_files(config, warehouse, window, data)
        problem = OnlineModel.load(data).predict(example)[ERROR_COLUMN].iloc[0]
        if problem is not None:
            raise ModelFileError(f"window {window}: its served model cannot score the example: {problem}")
        pyfunc.save_model(
            str(folder),
            loader_module="ltv_assets.scoring.online",
            data_path=str(data),
            signature=signature(contract_of(config)),
            input_example=example,
            # Said, not guessed: guessing loads the model in a process of its own, which takes many seconds.
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )


def write_files(config: Config, warehouse: Warehouse, window: PartitionKey, folder: Path) -> None:
    """Write the verified files of a window's served model, its feature registry, its contract and the list of all with their hashes."""
    files = {f"{MODELS}/{name}": data for name, data in warehouse.artifacts("served_model", window).items()}
    require_same_features(config, warehouse, window)
    files |= {REGISTRY: config.features.read_bytes(), CONTRACT: config.contract.read_bytes()}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    listing = {
        "schema_version": SCHEMA_VERSION,
        "window": window,
        "fingerprint": warehouse.fingerprint("served_model", window),
        "files": {name: sha256_hex(data) for name, data in sorted(files.items())},
    }
    (folder / LISTING).write_text(json.dumps(listing, indent=1, sort_keys=True) + "\n")


def signature(contract: Contract) -> ModelSignature:
    """The model's inputs and outputs.

    Every input is optional and of any type, because a nested column may arrive in several JSON forms and one malformed
    value must not refuse the rows beside it; the model itself judges each value. Outputs are nullable for the same reason.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, ColSpec, Schema

    from ltv_assets.core.asset_specs import relations

    kinds: dict[str, Any] = {"DOUBLE": "double", "BOOLEAN": "boolean", "VARCHAR": "string"}
    outputs = [ColSpec(kinds[c.type], c.name, required=False) for c in relations(contract)["predictions"] if c.name != "day"]
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), name, required=False) for name in input_columns(contract)]),
        outputs=Schema([*outputs, ColSpec("string", ERROR_COLUMN, required=False)]),
    )
