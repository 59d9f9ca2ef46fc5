"""The configuration: one frozen pydantic tree, loaded once from ``config/*.yaml``.

What belongs here: every key, its unit, its range and its meaning (``schema.py``), and the loading of files (``load.py``). What
does not: any work. An unknown key, a wrong type or an impossible window is an error that names the file, the key and the
line, raised before anything starts. Next to read: ``config/config.yaml``, the full horizon.
"""

from __future__ import annotations

from ltv_assets.core.config.load import PROJECT_ROOT, complaint, load_config, parse_config, placed
from ltv_assets.core.config.schema import (
    FIRST_DAY,
    LAST_DAY,
    BoosterConfig,
    CalibrationConfig,
    ComputeConfig,
    Config,
    DataConfig,
    DateRanges,
    ForestConfig,
    GatingConfig,
    LinearConfig,
    ModelsConfig,
    RetentionConfig,
    SamplingConfig,
    ServingConfig,
    StackerConfig,
    parse_day,
    walk_keys,
)

__all__ = [
    "FIRST_DAY",
    "LAST_DAY",
    "PROJECT_ROOT",
    "BoosterConfig",
    "CalibrationConfig",
    "ComputeConfig",
    "Config",
    "DataConfig",
    "DateRanges",
    "ForestConfig",
    "GatingConfig",
    "LinearConfig",
    "ModelsConfig",
    "RetentionConfig",
    "SamplingConfig",
    "ServingConfig",
    "StackerConfig",
    "complaint",
    "load_config",
    "parse_config",
    "parse_day",
    "placed",
    "walk_keys",
]
