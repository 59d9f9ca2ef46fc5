"""D7 LTV of ad impressions as a Dagster asset graph: features, sampling, models, checks and predictions."""

import os

# Idle OpenMP threads sleep instead of spinning: alone it costs nothing, and on a machine that does other work as well
# training is several times faster. It must be set before LightGBM loads its OpenMP runtime.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Arrow's own allocator keeps what was freed; the C library's gives it back when `storage.memory` asks. It is chosen when
# Arrow is loaded.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
