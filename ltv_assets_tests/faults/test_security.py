"""Nothing untrusted is executed, opened blindly or let out of its folder; secrets stay in the environment."""

from __future__ import annotations

import ast
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ltv_assets.core.config import Config, load_config
from ltv_assets.core.errors import ConfigError, DataError, ModelFileError
from ltv_assets.core.hashing import sha256_hex
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.modeling import LTVModel
from ltv_assets.modeling.boosting import TreeModel
from ltv_assets.modeling.serialization import MANIFEST, seal_text, to_json, write_folder
from ltv_assets.scoring.submission import refuse_formulas, write_submissions
from ltv_assets.storage.champion import Champion
from ltv_assets.storage.manifest import MANIFEST_NAME
from ltv_assets.storage.warehouse import Warehouse
from ltv_assets.tracking.client import Record, Tracker
from ltv_assets_tests.conftest import PROJECT
from ltv_assets_tests.faults.catalogue import Fault, fault
from ltv_assets_tests.faults.evidence import nothing_changes, tree
from ltv_assets_tests.faults.world import notes

PASSWORD = "hunter2-not-for-logs"
LOADERS = {"pickle", "cPickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "torch", "skops"}


# ------------------------------------------------------------------------------------------------------------- model files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of one model text, one JSON and their manifest, as `LTVModel.save` writes it."""
    return write_folder(tmp_path / "model", {"booster.txt": seal_text("tree\nversion=v4\nnum_class=1\n"), "facts.json": to_json({"a": 1})})


def truncate(model: Path) -> None:
    path = model / "booster.txt"
    path.write_bytes(path.read_bytes()[:10])


def flip(model: Path) -> None:
    path = model / "facts.json"
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))


def remove(model: Path) -> None:
    (model / "booster.txt").unlink()


def no_manifest(model: Path) -> None:
    (model / MANIFEST).unlink()


def foreign(model: Path) -> None:
    (model / MANIFEST).write_text('{"format": "somebody else"}')


def reach_out(model: Path) -> None:
    secret = model.parent / "secret.json"
    secret.write_text("{}")
    listed = json.loads((model / MANIFEST).read_bytes())
    listed["files"]["../secret.json"] = {"bytes": 2, "sha256": sha256_hex(b"{}")}
    (model / MANIFEST).write_text(json.dumps(listed))


@fault(
    "security",
    "model file truncated",
    answer="reject",
    message="<file>/booster.txt: expected <n> bytes with sha256 <hash>, found 10 bytes with <other>; restore it or train again",
    inject=truncate,
)
@fault(
    "security",
    "model file altered",
    answer="reject",
    message="<file>/facts.json: expected <n> bytes with sha256 <hash>, found <m> bytes with <other>; restore it or train again",
    inject=flip,
)
@fault(
    "security",
    "model file removed",
    answer="reject",
    message="<file>/booster.txt: listed in the manifest but missing; restore it or train again",
    inject=remove,
)
@fault(
    "security",
    "folder without a manifest",
    answer="reject",
    message="<file>/manifest.json: no manifest; expected a folder written by LTVModel.save",
    inject=no_manifest,
)
@fault(
    "security",
    "foreign model folder",
    answer="reject",
    message="<file>/manifest.json: expected format ltv_assets.model version 1, found <other>; train again with this version",
    inject=foreign,
)
@fault(
    "security",
    "model manifest that names a file outside",
    answer="reject",
    message="<file>/manifest.json: the file name '../secret.json' leaves the model's folder; refuse to read it",
    inject=reach_out,
)
def test_model_folder_is_verified_before_any_of_it_is_opened(fault: Fault, model: Path) -> None:
    fault.inject(model)
    with nothing_changes(model), pytest.raises(ModelFileError) as raised:
        LTVModel.load(model)
    fault.told(str(raised.value))


def unsealed(text: bytes) -> bytes:
    return text.partition(b"\nsha256=")[0]


def torn(text: bytes) -> bytes:
    return text[: len(text) // 2]


def altered(text: bytes) -> bytes:
    return text.replace(b"num_class=1", b"num_class=9")


@fault(
    "security",
    "LightGBM text without its seal (a foreign model)",
    answer="reject",
    message="booster.txt: truncated or altered model text (its own hash disagrees); restore the file or train again",
    inject=unsealed,
)
@fault(
    "security",
    "LightGBM text torn in the middle, which would abort the process",
    answer="reject",
    message="booster.txt: truncated or altered model text (its own hash disagrees); restore the file or train again",
    inject=torn,
)
@fault(
    "security",
    "LightGBM text altered after it was sealed",
    answer="reject",
    message="booster.txt: truncated or altered model text (its own hash disagrees); restore the file or train again",
    inject=altered,
)
def test_lightgbm_never_sees_a_text_that_is_not_the_sealed_one(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    import lightgbm

    def aborts(*arguments: object, **named: object) -> None:
        raise AssertionError("LightGBM was given the text")

    monkeypatch.setattr(lightgbm, "Booster", aborts)
    sealed = seal_text("tree\nversion=v4\nnum_class=1\n")
    with pytest.raises(ModelFileError) as raised:
        TreeModel.from_files({"booster.txt": fault.inject(sealed), "booster.json": b"{}"}, "booster")
    fault.told(str(raised.value))


WRITTEN_BY_ITSELF = "compiled_sql.py: exec"
"""Statements of the module's own names; `test_no_text_of_an_expression_becomes_code` holds it to that."""


def test_no_module_imports_a_loader_that_executes_what_it_reads() -> None:
    found = []
    for path in sorted((PROJECT / "ltv_assets").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                unsafe_yaml = called in ("yaml.load", "yaml.unsafe_load", "yaml.full_load")
                if called in ("eval", "exec", "np.load", "numpy.load", "pd.read_pickle") or unsafe_yaml:
                    found += [f"{path.name}:{node.lineno}: {called}"] if f"{path.name}: {called}" != WRITTEN_BY_ITSELF else []
                if any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                    found.append(f"{path.name}:{node.lineno}: allow_pickle")
            found += [f"{path.name}:{node.lineno}: import {name}" for name in names if name.partition(".")[0] in LOADERS]
    assert found == []


@pytest.mark.parametrize(
    "sql",
    [
        "coalesce(a, '__import__(''os'').system(''true'')')",
        "CASE WHEN t = '\n    raise SystemExit' THEN 1 ELSE 2 END",
        "list_contains(['x = 1', t], t)",
        'nullif(t, \'"""); quit(); ("""\')',
    ],
)
def test_no_text_of_an_expression_becomes_code(sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ltv_assets.core.database import open_duckdb
    from ltv_assets.features import compiled_sql

    written: list[str] = []
    monkeypatch.setattr(compiled_sql, "compile", lambda source, *rest: written.append(source) or compile(source, *rest), raising=False)
    with open_duckdb(threads=1, memory_limit="200MB") as connection:
        compiled = compiled_sql.compile_sql([sql], {"a": "VARCHAR", "t": "VARCHAR"}, connection)
        (by_engine,) = connection.execute(f"SELECT ({sql}) FROM (SELECT 'x'::VARCHAR AS a, 'y'::VARCHAR AS t)").fetchone() or ()
        assert compiled(("x", "y")) == (by_engine,)
    (source,) = written
    python = "def compiled values return None if is or else not and int abs"
    known = {*python.split(), *compiled_sql._FUNCTIONS}
    words = set(re.findall(r"[^\W\d]\w*", source))
    assert {w for w in words if not re.fullmatch(r"[vtk]\d+", w)} <= known and not set("'\"\\#;") & set(source)


def test_no_file_of_a_finished_warehouse_is_a_pickle(ran_warehouse: Path) -> None:
    """Protocol 2 and later begin with 0x80 and the protocol's number, zip archives of models with PK."""
    suspicious = [
        path
        for path in ran_warehouse.rglob("*")
        if path.is_file() and (path.suffix in (".pkl", ".pickle", ".joblib") or path.open("rb").read(2) in (b"\x80\x04", b"\x80\x05"))
    ]
    inside = [p for p in suspicious if p.relative_to(ran_warehouse).parts[0] != "dagster"]
    assert inside == []


@pytest.fixture
def ran_warehouse(tmp_path: Path) -> Path:
    """A warehouse with one published partition of every kind of file the storage writes."""
    warehouse = Warehouse(tmp_path / "warehouse")

    def fill(folder: Path) -> dict[str, int | None]:
        pq.write_table(pa.table({"x": [1]}), folder / "part.parquet")
        write_folder(folder / "model", {"booster.txt": seal_text("tree"), "facts.json": to_json({"a": 1})})
        return {"part.parquet": 1, "model/booster.txt": None, "model/facts.json": None, f"model/{MANIFEST}": None}

    warehouse.write("served_model", "2025-10-03", fill, code_version="1", config="c", inputs={})
    return warehouse.root


def test_mlflow_is_told_to_refuse_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    Tracker(Config(), Warehouse(tmp_path))._client()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


# ------------------------------------------------------------------------------------------------------------------- roots


def another_manifest(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"2025-10-01"', '"2025-10-02"'))


def outside_name(folder: Path) -> None:
    path = folder / MANIFEST_NAME
    path.write_text(path.read_text().replace('"note.json"', '"../../../secret.json"'))


@fault(
    "security",
    "manifest of another partition",
    answer="reject",
    message="<file>: expected the manifest of predictions 2025-10-01, found that of predictions 2025-10-02; "
    "run `ltv run`, which makes the partition again",
    inject=another_manifest,
)
@fault(
    "security",
    "partition manifest that names a file outside",
    answer="reject",
    message="<file>: the file name '../../../secret.json' leaves the partition's folder; run `ltv run`, which makes the partition again",
    inject=outside_name,
)
def test_partition_is_read_only_by_its_own_manifest(fault: Fault, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.write("predictions", "2025-10-01", notes(note="{}"), code_version="1", config="c", inputs={})
    fault.inject(warehouse.folder("predictions", "2025-10-01"))
    with pytest.raises(ModelFileError) as raised:
        warehouse.artifacts("predictions", "2025-10-01")
    fault.told(str(raised.value))
    warehouse.write("predictions", "2025-10-01", notes(note="{}"), code_version="1", config="c", inputs={})
    assert warehouse.artifacts("predictions", "2025-10-01") == {"note.json": b"{}"}


@fault(
    "security",
    "path traversal in a partition key",
    answer="reject",
    message="partition key '<key>': expected a day such as 2025-10-06",
    keys=("../../etc", "2025-10-01/../../x", "2025-10-01\n", "/etc/passwd", "..", "2025-10-01_..", "2025-10-0１"),
)
def test_partition_key_never_becomes_a_path_outside(fault: Fault, tmp_path: Path) -> None:
    for key in fault.keys:
        with pytest.raises(DataError) as raised:
            Warehouse(tmp_path / "warehouse").folder("predictions", PartitionKey(key))
        fault.told(str(raised.value).encode("unicode_escape").decode())
    assert tree(tmp_path) == {}


@fault(
    "security",
    "configured path that climbs out of the project",
    answer="reject",
    message="<file>:1: data.root: the path ../../etc leaves the project; give an absolute path, or one below the project root",
    text="data: {root: ../../etc}",
)
@fault(
    "security",
    "configured folder name that is a path",
    answer="reject",
    message="<file>:1: data.train_folder: String should match pattern <pattern>",
    text="data: {train_folder: ../train}",
)
@fault(
    "security",
    "configuration that constructs Python objects",
    answer="reject",
    message="<file>:1: not valid YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    text='seed: !!python/object/apply:os.system ["touch owned"]',
)
def test_configuration_reaches_nothing_outside(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(fault.text)
    with nothing_changes(tmp_path), pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "config.yaml")
    fault.told(str(raised.value))


@fault(
    "security",
    "folder named with a wildcard",
    answer="reject",
    message="warehouse.root (LTV_WAREHOUSE): the path <path> holds one of * ? [, which DuckDB takes for a pattern; choose another folder",
)
def test_folder_with_a_wildcard_is_refused(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTV_WAREHOUSE", str(tmp_path / "ware*house"))
    with pytest.raises(ConfigError) as raised:
        load_config()
    fault.told(str(raised.value))


def predictions(folder: Path, row_ids: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"row_id": row_ids, "iap_revenue_d7": [1.0] * len(row_ids), "ltv_d7": [1.0] * len(row_ids)}), folder / "s.parquet"
    )
    return folder / "s.parquet"


def test_quotes_in_a_path_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "o'brien'); DROP TABLE scored; --"
    rows = write_submissions([predictions(folder, ["a", "b"])], None, folder, threads=1, memory_limit="1GB")
    assert rows == 2
    assert (folder / "submission.csv").read_text().splitlines()[1:] == ["a,1.0", "b,1.0"]


# ------------------------------------------------------------------------------------------------------------- spreadsheets


@fault(
    "security",
    "formula text in row_id, submission",
    answer="reject",
    message="submission: row_id <id> would be read as a formula by a spreadsheet; repair the test data and score the days again",
)
def test_submission_holds_no_formula(fault: Fault, tmp_path: Path) -> None:
    for start in "=+-@\t\r":
        with pytest.raises(DataError) as raised:
            write_submissions([predictions(tmp_path / "in", [f"{start}1+1", "b"])], None, tmp_path, threads=1, memory_limit="1GB")
        fault.told(str(raised.value))
    assert not list(tmp_path.glob("*.csv"))


@fault(
    "security",
    "formula text in row_id, ltv predict",
    answer="reject",
    message="scores.csv: row_id <id> would be read as a formula by a spreadsheet; write .parquet, or repair the data",
)
def test_predicted_csv_holds_no_formula(fault: Fault) -> None:
    refuse_formulas(pa.chunked_array([["a", "1=2", "Ünïcode", None]]), "scores.csv")
    with pytest.raises(DataError) as raised:
        refuse_formulas(pa.chunked_array([["a"], ['=HYPERLINK("http://example.org")']]), "scores.csv")
    fault.told(str(raised.value))


# ----------------------------------------------------------------------------------------------------------------- servers


def test_dev_server_binds_to_loopback(place: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from ltv_assets.cli.app import main

    place()
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, words: started.append(words))
    monkeypatch.setattr("shutil.which", lambda *a, **k: "/bin/dagster")
    assert CliRunner().invoke(main, ["dev", "--port", "0"]).exit_code == 2
    done = CliRunner().invoke(main, ["dev", "--port", "3977"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert started[0][started[0].index("--host") + 1] == "127.0.0.1"


def test_plain_dagster_dev_binds_to_loopback() -> None:
    from dagster_webserver.cli import DEFAULT_WEBSERVER_HOST

    assert DEFAULT_WEBSERVER_HOST == "127.0.0.1"


# ----------------------------------------------------------------------------------------------------------------- secrets


class _Refuses(BaseHTTPRequestHandler):
    """A tracking server that answers every request with an error and repeats what it was asked."""

    def do_GET(self) -> None:
        body = json.dumps({"error_code": "INTERNAL_ERROR", "message": f"refused {self.headers.get('Authorization')}"}).encode()
        self.send_response(500)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        return


@pytest.fixture
def refusing_server() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://ltv:{PASSWORD}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("up", [True, False])
def test_password_of_the_tracking_uri_is_neither_stored_nor_shown(
    up: bool, refusing_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = refusing_server if up else f"http://ltv:{PASSWORD}@127.0.0.1:9"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name, value in (("MAX_RETRIES", "0"), ("TIMEOUT", "2"), ("BACKOFF_FACTOR", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    config = Config()
    warehouse = Warehouse(tmp_path / "warehouse")
    tracker = Tracker(config, warehouse)
    result = tracker.log(Record(window="2025-10-03", stage="window", identity="i", params={"a": "1"}, finished=True))
    problem = tracker.mirror_champion(Champion("2025-10-03", "f", "why"))
    printed = capfd.readouterr()
    said = f"{result} {problem} {printed.out} {printed.err}"
    assert result.problem, "the server was supposed to be of no use"
    assert PASSWORD not in said
    stored = [path for path in warehouse.root.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert stored == []
    assert PASSWORD not in str(config.model_dump(mode="json"))


def test_configuration_has_no_place_for_a_secret() -> None:
    from ltv_assets.core.config import walk_keys

    suspicious = [key for key, _ in walk_keys() if any(word in key.lower() for word in ("password", "secret", "token", "credential"))]
    assert suspicious == []
