"""A wrong configuration is refused before any work starts, with file, line and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import ltv

DATES = "data:\n  dates:\n    train: {first: 2025-10-06, last: 2025-10-01}\n    test: {first: 2025-10-08, last: 2025-10-09}\n"
OVERLAP = "data:\n  dates:\n    train: {first: 2025-10-01, last: 2025-10-08}\n    test: {first: 2025-10-08, last: 2025-10-09}\n"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@fault("configuration", "syntax error", answer="reject", message="<file>:2: not valid YAML: <detail>", inject="seed: [1\n")
@fault("configuration", "not a mapping", answer="reject", message="<file>:1: expected a mapping of sections, found list", inject="- 1\n")
@fault(
    "configuration",
    "unknown key",
    answer="reject",
    message="<file>:2: windows.max_trian_days: unknown key; did you mean max_train_days?",
    inject="windows:\n  max_trian_days: 7\n",
)
@fault(
    "configuration",
    "unknown key with a bracket in it",
    answer="reject",
    message="<file>:2: windows.max_train[days: unknown key; did you mean max_train_days?",
    inject="windows:\n  max_train[days: 7\n",
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
    message="<file>:2: windows.min_train_days: expected a whole number, found <found>",
    inject="windows:\n  min_train_days: two\n",
)
@fault(
    "configuration",
    "keys where one word was expected",
    answer="reject",
    message="<file>:2: sampling.regressor: expected 'none' or 'hhistus', found {'a': 1}",
    inject="sampling:\n  regressor: {a: 1}\n",
)
@fault(
    "configuration",
    "out of range",
    answer="reject",
    message="<file>:3: data.train.sampling_fraction: expected <bound>, found <found>",
    inject="data:\n  train:\n    sampling_fraction: 1.5\n",
)
@fault(
    "configuration",
    "NaN",
    answer="reject",
    message="<file>:2: checks.rmsle_max: expected a finite number, found .nan",
    inject="checks:\n  rmsle_max: .nan\n",
)
@fault(
    "configuration",
    "window end before start",
    answer="reject",
    message="<file>:3: data.dates.train: last day 2025-10-01 lies before first day 2025-10-06, found <found>",
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
    message="<file>:1: windows: max_train_days 3 is below min_train_days 9, found <found>",
    inject="windows:\n  min_train_days: 9\n  max_train_days: 3\n",
)
@fault(
    "configuration",
    "path outside the project",
    answer="reject",
    message="<file>:2: data.root: the path <path> leaves the project; give an absolute path, or one below the project root",
    inject="data:\n  root: ../elsewhere\n",
)
@fault(
    "configuration",
    "an alias inside its own value",
    answer="reject",
    message="<file>:1: an alias (*) stands inside the value it refers to; write the value out",
    inject="data: &a\n  root: *a\n",
)
@fault(
    "configuration",
    "an impossible date",
    answer="reject",
    message="<file>:2: data.gap_days.0: expected a day such as 2025-10-06, between 2000-01-01 and 2199-12-31, found '2025-13-01'",
    inject="data:\n  gap_days: [2025-13-01]\n",
)
@fault(
    "configuration",
    "a cron expression that is none",
    answer="reject",
    message="<file>:2: automation.daily_health: expected a cron expression that Dagster accepts (minute 0-59, hour 0-23, day of month, "
    "month, day of week), such as '0 6 * * *', found '0 25 * * *'",
    inject="automation:\n  daily_health: 0 25 * * *\n",
)
@fault(
    "configuration",
    "days beyond the calendar",
    answer="reject",
    message="<file>:2: windows.embargo_days: expected less than or equal to 36500, found 100000000",
    inject="windows:\n  embargo_days: 100000000\n",
)
@fault(
    "configuration",
    "a number too large for the libraries",
    answer="reject",
    message="<file>:1: seed: expected less than or equal to 2147483647, found 99999999999999999999",
    inject="seed: 99999999999999999999\n",
)
@fault(
    "configuration",
    "true where a number was expected",
    answer="reject",
    message="<file>:2: compute.threads: expected a number, not true, found true",
    inject="compute:\n  threads: true\n",
)
@fault(
    "configuration",
    "a port beyond 65535",
    answer="reject",
    message="<file>:2: compute.scheduler: expected tcp:// or tls://, a host and a port between 1 and 65535, <example>, found <found>",
    inject="compute:\n  scheduler: tcp://10.0.0.5:99999\n",
)
@fault(
    "configuration",
    "aliases that stand for more than memory holds",
    answer="reject",
    message="<file>:6: aliases (*) stand for more than 100000 values; write out what is meant",
    inject="a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(f"{n}: &{n} [{', '.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
)
@fault(
    "configuration",
    "nested too deeply",
    answer="reject",
    message="<file>: not valid YAML: nested too deeply; write at most a few levels",
    inject="[" * 5000,
)
@fault(
    "configuration", "a key that is no word", answer="reject", message="<file>:1: expected a word as key, found 'true'", inject="true: 1\n"
)
@fault(
    "configuration",
    "one folder for both splits",
    answer="reject",
    message="<file>:1: data: train_folder and test_folder are both 'train'; an hour is either labelled or not, found <found>",
    inject="data: {test_folder: train}\n",
)
@fault(
    "configuration",
    "the home of a user who has none",
    answer="reject",
    message="<file>:2: data.root: the path <path> begins with the home folder of a user who has none here, found <found>",
    inject="data:\n  root: ~nobody-of-that-name/data\n",
)
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
    message="contract.yaml:<line>: own_keys.<domain>: no column '<column>' is declared under columns; declare it, or correct the name",
)
def test_contract_without_an_own_key_is_refused(fault: Fault) -> None:
    from pathlib import Path

    from ltv_assets.core.contract import SHIPPED, parse_contract
    from ltv_assets.core.errors import ConfigError

    text = SHIPPED.read_text()
    lost = next(line for line in text.splitlines() if line.startswith("  - {name: region,"))
    with pytest.raises(ConfigError) as caught:
        parse_contract(text.replace(lost, lost.replace("name: region", "name: district")), Path("contract.yaml"))
    line = text[: text.index("  region: region")].count("\n") + 1
    assert fault.told(str(caught.value)) == {"line": str(line), "column": "region", "domain": "region"}
