"""A window's served model, ready to answer requests, from the warehouse.

What belongs here: the model of the warehouse joined with the features it was trained on. What does not: the same model as MLflow's
folder (``mlflow_model.py``), who is champion. Next to read: ``online.py``.
"""

from __future__ import annotations

import pyarrow.parquet as pq

from ltv_assets.core.config import Config
from ltv_assets.core.contract import contract_of
from ltv_assets.core.errors import StaleError
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.features.registry import load_registry
from ltv_assets.features.rows import RowFlattener
from ltv_assets.modeling.model_store import read_served
from ltv_assets.scoring.online import OnlineModel
from ltv_assets.storage.warehouse import Warehouse


def read_model(config: Config, warehouse: Warehouse, window: PartitionKey) -> OnlineModel:
    """The served model of a window, verified.

    Raises ModelFileError if a file is damaged or missing, StaleError or DataError if the features are described otherwise now.
    """
    contract = contract_of(config)
    require_same_features(config, warehouse, window)
    return OnlineModel(read_served(warehouse, window), RowFlattener(load_registry(config.features, contract)), contract)


def require_same_features(config: Config, warehouse: Warehouse, window: PartitionKey) -> None:
    """Refuse a registry that differs from the one the window's last day was flattened with."""
    if warehouse.manifest("flattened_features", window) is None:
        return
    expected = load_registry(config.features, contract_of(config)).fingerprint()
    for path in warehouse.files("flattened_features", window, verify=False):
        metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
        if metadata.get(b"registry", b"").decode() != expected:
            raise StaleError(
                f"window {window} was trained on other features than {config.features} describes now; train it again with "
                f"`ltv run --window {window}`, or restore the file"
            )
