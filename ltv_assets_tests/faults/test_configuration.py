"""A wrong configuration is refused before any work starts, with file, line and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import ltv

DATES = "data:\n  dates:\n    train: {first: 2025-10-06, last: 2025-10-01}\n    test: {first: 2025-10-08, last: 2025-10-09}\n"
OVERLAP = "data:\n  dates:\n    train: {first: 2025-10-01, last: 2025-10-08}\n    test: {first: 2025-10-08, last: 2025-10-09}\n"


@fault("configuration", "syntax error", answer="reject", message="<file>:2: not valid YAML: <detail>", inject="seed: [1\n")
@fault("configuration", "not a mapping", answer="reject", message="<file>:1: expected a mapping of sections, found list", inject="- 1\n")
@fault(
    "configuration",
    "unknown key",
    answer="reject",
    message="<file>:2: windows.max_trian_days: Extra inputs are not permitted, found <found>",
    inject="windows:\n  max_trian_days: 7\n",
)
@fault(
    "configuration",
    "a key twice",
    answer="reject",
    message="<file>:2: key 'seed' stands twice (first on line 1); remove one",
    inject="seed: 1\nseed: 2\n",
)
@fault(
    "configuration",
    "wrong type",
    answer="reject",
    message="<file>:2: windows.min_train_days: Input should be a valid integer, <detail>, found <found>",
    inject="windows:\n  min_train_days: two\n",
)
@fault(
    "configuration",
    "keys where one word was expected",
    answer="reject",
    message="<file>:2: sampling.regressor: Input should be 'none' or 'hhistus', found {'a': 1}",
    inject="sampling:\n  regressor: {a: 1}\n",
)
@fault(
    "configuration",
    "out of range",
    answer="reject",
    message="<file>:3: data.train.sampling_fraction: Input should be <bound>, found <found>",
    inject="data:\n  train:\n    sampling_fraction: 1.5\n",
)
@fault(
    "configuration",
    "NaN",
    answer="reject",
    message="<file>:2: checks.rmsle_max: Input should be a finite number, found nan",
    inject="checks:\n  rmsle_max: .nan\n",
)
@fault(
    "configuration",
    "window end before start",
    answer="reject",
    message="<file>:3: data.dates.train: Value error, last day 2025-10-01 lies before first day 2025-10-06, found <found>",
    inject=DATES,
)
@fault(
    "configuration",
    "training days that overlap test days",
    answer="reject",
    message="training days <first>..<last> overlap test days <test_first>..<test_last>",
    inject=OVERLAP,
)
@fault(
    "configuration",
    "fewer days at most than at least",
    answer="reject",
    message="<file>:1: windows: Value error, max_train_days 3 is below min_train_days 9, found <found>",
    inject="windows:\n  min_train_days: 9\n  max_train_days: 3\n",
)
@fault(
    "configuration",
    "path outside the project",
    answer="reject",
    message="<file>:2: data.root: Value error, the path <path> leaves the project; give an absolute path, or one below the project root",
    inject="data:\n  root: ../elsewhere\n",
)
@fault(
    "configuration",
    "an alias inside its own value",
    answer="reject",
    message="<file>: an alias (*) stands inside the value it refers to; write the value out",
    inject="data: &a\n  root: *a\n",
)
@fault("configuration", "an impossible date", answer="reject", message="<file>: not valid YAML: <detail>", inject="seed: 2025-13-01\n")
def test_wrong_configuration_is_refused_before_anything_is_written(fault: Fault, place: Callable[..., Path], tmp_path: Path) -> None:
    warehouse = place(tmp_path / "data", fault.inject)
    for command in ("run", "status"):
        code, text = ltv(command)
        assert code == 2
        assert fault.told(text).get("file", str(tmp_path / "config.yaml")).endswith(str(tmp_path / "config.yaml"))
    assert not warehouse.exists()


def not_utf8(file: Path) -> None:
    file.write_bytes("# días\nseed: 0\n".encode("latin-1"))


@fault(
    "configuration", "not UTF-8", answer="reject", message="<file>: not UTF-8 text (byte <byte>); save the file as UTF-8", inject=not_utf8
)
@fault(
    "configuration",
    "file not there",
    answer="reject",
    message="<file>: configuration file not found; set LTV_CONFIG to an existing file such as config/config.yaml",
    inject=Path.unlink,
)
def test_unreadable_configuration_is_refused(fault: Fault, place: Callable[..., Path], tmp_path: Path) -> None:
    place(tmp_path / "data", "seed: 0\n")
    fault.inject(tmp_path / "config.yaml")
    code, text = ltv("run")
    assert code == 2
    fault.told(text)


@fault(
    "configuration",
    "LTV_DATA_ROOT names no folder with data",
    answer="reject",
    message="no window can be trained: it needs 2 labelled days before its holdout day, found: none under <root>; "
    "run `ltv simulate`, or set LTV_DATA_ROOT to a folder with train/ and test/",
    variable="LTV_DATA_ROOT",
    value="/nowhere",
)
@fault(
    "configuration",
    "LTV_TODAY is no day",
    answer="reject",
    message="environment variable LTV_TODAY: expected a day such as 2025-11-01, found 'soon'",
    variable="LTV_TODAY",
    value="soon",
)
def test_wrong_environment_is_refused(
    fault: Fault, place: Callable[..., Path], simulated_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = place(simulated_small, "seed: 0\n")
    monkeypatch.setenv(fault.variable, fault.value)
    code, text = ltv("run")
    assert code == 2
    fault.told(text)
    assert not (warehouse / "lake").exists()


@fault(
    "configuration",
    "own-key column removed from the contract",
    answer="reject",
    message="ltv_assets/contract.py: column <column> is not declared, but features/statistics.py takes the impression's own key of "
    "<domain> from it; declare it (files may lack it), or remove its line from OWN_KEY",
)
def test_contract_without_an_own_key_is_refused(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.config import PROJECT_ROOT
    from ltv_assets.errors import ConfigError
    from ltv_assets.features import registry

    monkeypatch.setattr(registry, "BY_NAME", {n: c for n, c in registry.BY_NAME.items() if n != "country"})
    with pytest.raises(ConfigError) as caught:
        registry.load_registry(PROJECT_ROOT / "config" / "features.yaml")
    assert fault.told(str(caught.value)) == {"column": "country", "domain": "country"}
