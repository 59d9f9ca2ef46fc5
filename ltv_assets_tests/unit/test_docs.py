"""The documentation says what the code does: generated tables, links, commands, queries, keys and names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import duckdb
import pytest
import yaml

from ltv_assets.cli.app import main
from ltv_assets.core.asset_specs import ASSET_NAMES
from ltv_assets.core.config import PROJECT_ROOT, Config, parse_config, walk_keys
from ltv_assets.state.project import Project
from ltv_assets_tests.markdown import DOCS, PAGES, blocks, commands, prose, simple_commands

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(PROJECT_ROOT)))


# ------------------------------------------------------------------------------------------------------------ generated


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "generate.py"), "--check"], capture_output=True, text=True, cwd=PROJECT_ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_names_the_page_that_is_out_of_date_and_changes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    generate = importlib.import_module("generate")
    page = tmp_path / "metrics.md"
    page.write_text("# Metrics\n\n<!-- generated: metrics -->\nold\n<!-- end of metrics -->\n\nBy hand.\n")
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "PROJECT_ROOT", tmp_path)
    assert generate.main(["--check"]) == 1
    assert "old" in page.read_text()
    assert generate.main([]) == 0
    assert "`rmsle_gated`" in page.read_text()
    assert page.read_text().endswith("By hand.\n")
    assert generate.main(["--check"]) == 0


# ---------------------------------------------------------------------------------------------------------------- links


def anchors(page: Path) -> set[str]:
    """Fragments GitHub makes of a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(slug if slug not in found else f"{slug}-1")
    return found


@every_page
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target}: no such file"
        assert linked.is_relative_to(PROJECT_ROOT), f"{target}: leaves the project"
        if fragment and linked.suffix == ".md":
            assert fragment in anchors(linked), f"{target}: no such heading"


# ------------------------------------------------------------------------------------------------------------- commands


def ltv_problem(words: list[str]) -> str | None:
    """Why the command line would refuse these words (paths are not looked up), or None."""
    words = words[: next((i for i, word in enumerate(words) if set(word) <= set("<>")), len(words))]
    if len(words) < 2:
        return None
    command = main.commands.get(words[1]) if not words[1].startswith("-") else None
    if command is None:
        return None if words[1] in ("--help", "-h", "--version") else f"no command {words[1]}"
    if isinstance(command, click.Group) and len(words) > 2 and not words[2].startswith("-"):
        command, words = command.commands.get(words[2]), words[1:]
        if command is None:
            return f"no command {words[1]}"
    context = click.Context(command, info_name=words[1])
    try:
        values, rest, _ = command.make_parser(context).parse_args(args=list(words[2:]))
        for parameter in command.get_params(context):
            value = values.get(parameter.name or "")
            if parameter.name == "help":
                continue
            if not isinstance(value, str):
                if parameter.required and not isinstance(value, tuple):
                    return f"{parameter.name} is missing"
                continue
            if not isinstance(parameter.type, click.Path):
                parameter.type.convert(value, parameter, context)
    except click.UsageError as error:
        return error.format_message()
    return f"unexpected {rest}" if rest else None


@every_page
def test_ltv_commands_and_options_exist(page: Path) -> None:
    wrong = [(" ".join(words), problem) for words in commands(page) if words[0] == "ltv" and (problem := ltv_problem(words)) is not None]
    assert wrong == []


@every_page
def test_make_targets_and_assets_in_commands_exist(page: Path) -> None:
    makefile = (PROJECT_ROOT / "Makefile").read_text()
    for words in commands(page):
        if words[0] == "make":
            for target in (word for word in words[1:] if "=" not in word and not word.startswith("-")):
                assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"
        if words[0] in ("dagster", "dg"):
            for option, value in pairwise(words):
                if option in ("--select", "--assets"):
                    assert set(re.findall(r"\w+", value.split("/")[0])) <= set(ASSET_NAMES), " ".join(words)


def test_the_parser_of_commands_notices_what_is_wrong() -> None:
    for line, words in (
        ("ltv frobnicate", "no command"),
        ("ltv run --windows 2025-10-05", "No such option"),
        ("ltv run --window yesterday", "does not match the format"),
        ("ltv simulate --seed 1", "out is missing"),
        ("ltv catalog now", "unexpected"),
        ("LTV_TODAY=2025-10-14 ltv bench everything --data x | head", "is not"),
    ):
        found = [ltv_problem(command) for command in simple_commands(line) if command[0] == "ltv"]
        assert len(found) == 1
        assert words in str(found[0]), (line, found)
    script = "export A=b  # a comment\nA=b ltv status --json | grep stale > out.txt && ltv run \\\n  --window 2025-10-05\n"
    assert [c[0] for c in simple_commands(script)] == ["export", "ltv", "grep", "ltv"]
    assert [ltv_problem(c) for c in simple_commands(script) if c[0] == "ltv"] == [None, None]


# ------------------------------------------------------------------------------------------------------ queries, Python


@pytest.fixture(scope="module")
def empty_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """Every relation of the warehouse with its columns and no row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTV_WAREHOUSE", str(tmp_path_factory.mktemp("warehouse")))
        project = Project.open()
        project.sync_catalogue()
        with duckdb.connect(str(project.warehouse.database), read_only=True) as connection:
            yield connection


@every_page
def test_queries_run_on_the_catalogue(page: Path, empty_catalogue: duckdb.DuckDBPyConnection) -> None:
    for query in blocks(page, "sql"):
        empty_catalogue.execute(query).fetchall()


@every_page
def test_imports_in_python_blocks_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        try:
            tree = ast.parse(block)
        except SyntaxError:
            # Lines to be put into a tuple of the contract.
            tree = ast.parse(f"[\n{block}\n]")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltv_assets"):
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


# ---------------------------------------------------------------------------------------------------------------- names


def known_keys() -> set[str]:
    """Every key of the configuration and every section above it."""
    keys = {key for key, _ in walk_keys()}
    return keys | {".".join(key.split(".")[:end]) for key in keys for end in range(1, key.count(".") + 1)}


@every_page
def test_configuration_keys_and_variables_exist(page: Path) -> None:
    known = known_keys()
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:: [^`]*)?`", prose(page)):
        if key.split(".")[0] in Config.model_fields and not re.search(r"\.(ya?ml|py|md|json)$", key):
            assert key in known, f"no configuration key {key}"
    code = "\n".join(path.read_text() for path in (PROJECT_ROOT / "ltv_assets").rglob("*.py"))
    for variable in re.findall(r"\bLTV_[A-Z_]+\b", page.read_text()):
        assert variable in code, f"nothing reads {variable}"


@every_page
def test_pages_name_no_folder_of_anybody(page: Path) -> None:
    assert re.findall(r"(?<![\w.])/(?:home|Users|root|work)/\S*", page.read_text()) == []


def test_note_on_partly_given_sections_is_true() -> None:
    given = parse_config("models: {buyer_classifier: {num_leaves: 16}, stacker: {booster: {num_leaves: 5}}}\n", Path("some.yaml")).models
    usual = Config().models
    assert given.buyer_classifier == usual.buyer_classifier.model_copy(update={"num_leaves": 16})
    assert given.stacker == usual.stacker.model_copy(update={"booster": usual.stacker.booster.model_copy(update={"num_leaves": 5})})


def test_map_of_rooms_names_every_folder_on_one_screen() -> None:
    text = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## The map of rooms")[1].split("\n## ")[0]
    rooms = {path.parent.name for path in (PROJECT_ROOT / "ltv_assets").glob("*/__init__.py")}
    assert sorted(room for room in rooms if f"`{room}/`" not in section) == []
    assert len(section.strip().splitlines()) <= 40


@every_page
def test_files_named_in_the_text_exist(page: Path) -> None:
    for name in re.findall(r"`((?:ltv_assets|ltv_assets_tests|config|docs|benchmarks)/[\w./-]+\.\w+)`", prose(page)):
        assert (PROJECT_ROOT / name).exists(), f"{name} does not exist"


@every_page
def test_configuration_in_yaml_blocks_is_accepted(page: Path) -> None:
    for block in blocks(page, "yaml"):
        tree = yaml.safe_load(block)
        if isinstance(tree, dict) and set(tree) & set(Config.model_fields):
            parse_config(block, page)
