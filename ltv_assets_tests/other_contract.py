"""The suite under another contract: ``python -m ltv_assets_tests.other_contract shop [options of pytest]``.

It copies the project into a folder of its own, puts the contract and the features of a foreign table in the places of the
contest's there, and runs what holds under any contract. Every process that a test starts reads the same files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ltv_assets_tests.conftest import PROJECT, temporary_root
from ltv_assets_tests.foreign.contracts import CONTRACTS

LEFT_OUT = ("warehouse", "build", "dist", "*.egg-info", "__pycache__")
FOLDERS = ("ltv_assets_tests/unit", "ltv_assets_tests/property")
"""What is about the parts of the project; ``foreign/`` brings its contracts along, whichever is in place."""
NO_CONTRACT = (
    *("champion_registry", "cohorts", "kubernetes", "metrics", "model_ablation", "model_levels", "pictures", "rooms", "store_repair"),
    *("time_layouts", "tracking", "tuning"),
)
"""Files of ``unit/`` whose tests read none, or bring theirs along: run once, by `make test`, they say the same."""


def put_in_place(name: str, folder: Path) -> None:
    """Copy the project into an empty folder, with contract and features of a foreign table."""
    for entry in PROJECT.iterdir():
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "warehouse":
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        elif entry.is_file():
            shutil.copy2(entry, folder / entry.name)
    contract, features, _ = CONTRACTS[name]
    (folder / "config" / "contract.yaml").write_text(contract)
    (folder / "config" / "features.yaml").write_text(features)


def main(name: str, *options: str) -> int:
    """Exit code of pytest under the contract of one of the foreign tables."""
    with tempfile.TemporaryDirectory(prefix="ltv-contract-", dir=temporary_root()) as folder:
        put_in_place(name, Path(folder))
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not soak", *options, *FOLDERS]
        words += [f"--ignore=ltv_assets_tests/unit/test_{name}.py" for name in NO_CONTRACT]
        return subprocess.run(words, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
