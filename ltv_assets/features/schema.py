"""The flattened columns: names, Arrow types, and role, unit and description as field metadata.

What belongs here: the schema of every flattened day, and lists of its columns for other rooms. What does not: values.
Next to read: ``flatten/``, which writes exactly this schema.
"""

from __future__ import annotations

import pyarrow as pa

from ltv_assets.core.contract import HOUR, ROW_ID
from ltv_assets.features.registry import Feature, Registry

CATEGORICAL = pa.dictionary(pa.int32(), pa.string())
IDENTIFIER, HOUR_OF_ROW = "identifier of the row", "hour of the row, YYYY-MM-DD-HH-00; 00 where only its day is known"
"""What is said of the keys where the contract says nothing."""
_LABEL_TYPES = {"int32": pa.int32(), "int64": pa.int64(), "double": pa.float64()}


def flattened_schema(registry: Registry) -> pa.Schema:
    """Return the schema of a flattened day: keys, labels, features, each field with ``role``, ``unit`` and ``description``."""
    contract = registry.contract
    row, hour = contract.by_name[contract.identifier], contract.by_name.get(contract.time.column or "")
    fields = [
        _field(ROW_ID, pa.string(), "key", row.unit, row.description or IDENTIFIER),
        _field(HOUR, CATEGORICAL, "key", hour.unit if hour else None, (hour and hour.description) or HOUR_OF_ROW),
    ]
    labels = [contract.by_name[name] for name in contract.stored_labels]
    fields += [_field(c.name, _LABEL_TYPES[c.type], "label", c.unit, c.description) for c in labels]
    fields += [_field(f.name, _feature_type(f), "feature", f.unit, f.description) for f in registry.features]
    return pa.schema(fields, metadata={"registry": registry.fingerprint()})


def feature_names(registry: Registry) -> list[str]:
    """Return the names of all features, in the order of the flattened columns."""
    return [feature.name for feature in registry.features]


def categorical_names(registry: Registry) -> list[str]:
    """Return the names of the features that are categories (text), in the order of the flattened columns."""
    return [feature.name for feature in registry.features if feature.categorical]


def column_table(registry: Registry) -> list[tuple[str, str, str, str]]:
    """Return (name, type, unit, description) of every flattened column, for table schemas and the data dictionary."""
    rows = []
    for field in flattened_schema(registry):
        metadata = {key.decode(): value.decode() for key, value in field.metadata.items()}
        kind = "category" if field.type == CATEGORICAL else str(field.type)
        rows.append((field.name, kind, metadata["unit"], metadata["description"]))
    return rows


def _feature_type(feature: Feature) -> pa.DataType:
    return CATEGORICAL if feature.categorical else pa.float32()


def _field(name: str, kind: pa.DataType, role: str, unit: str | None, description: str) -> pa.Field:
    return pa.field(name, kind, metadata={"role": role, "unit": unit or "", "description": description})
