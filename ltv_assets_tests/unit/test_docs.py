"""The documentation says what the code does: generated tables, links, commands, queries, keys and names."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
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

Problems = Callable[[Path], Iterable[object]]


def no_page_has(problems: Problems) -> None:
    """Fail with every page and what is wrong with it."""
    found = {str(page.relative_to(PROJECT_ROOT)): wrong for page in PAGES if (wrong := list(problems(page)))}
    assert not found, found


# ------------------------------------------------------------------------------------------------------------ generated


@pytest.mark.contest
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


def broken_links(page: Path) -> Iterator[str]:
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in re.findall(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists():
            yield f"{target}: no such file"
        elif not linked.is_relative_to(PROJECT_ROOT):
            yield f"{target}: leaves the project"
        elif fragment and linked.suffix == ".md" and fragment not in anchors(linked):
            yield f"{target}: no such heading"


def test_relative_links_resolve() -> None:
    no_page_has(broken_links)


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


def test_ltv_commands_and_options_exist() -> None:
    def refused(page: Path) -> list[object]:
        return [(" ".join(words), why) for words in commands(page) if words[0] == "ltv" and (why := ltv_problem(words)) is not None]

    no_page_has(refused)


def unknown_targets_and_assets(page: Path) -> Iterator[str]:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT_ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            yield from (f"no target {w}" for w in words[1:] if "=" not in w and not w.startswith("-") and w not in targets)
        if words[0] in ("dagster", "dg"):
            for option, value in pairwise(words):
                if option in ("--select", "--assets") and not set(re.findall(r"\w+", value.split("/")[0])) <= set(ASSET_NAMES):
                    yield " ".join(words)


def test_make_targets_and_assets_in_commands_exist() -> None:
    no_page_has(unknown_targets_and_assets)


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


@pytest.mark.contest
def test_queries_run_on_the_catalogue(empty_catalogue: duckdb.DuckDBPyConnection) -> None:
    def refused(page: Path) -> Iterator[str]:
        for query in blocks(page, "sql"):
            try:
                empty_catalogue.execute(query).fetchall()
            except duckdb.Error as error:
                yield f"{query}: {error}"

    no_page_has(refused)


def missing_imports(page: Path) -> Iterator[str]:
    for block in blocks(page, "python"):
        try:
            tree = ast.parse(block)
        except SyntaxError:
            # Lines to be put into a tuple of the contract.
            tree = ast.parse(f"[\n{block}\n]")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ltv_assets"):
                module = importlib.import_module(node.module or "")
                yield from (f"{node.module}.{alias.name}" for alias in node.names if not hasattr(module, alias.name))


def test_imports_in_python_blocks_exist() -> None:
    no_page_has(missing_imports)


# ---------------------------------------------------------------------------------------------------------------- names


def known_keys() -> set[str]:
    """Every key of the configuration and every section above it."""
    keys = {key for key, _ in walk_keys()}
    return keys | {".".join(key.split(".")[:end]) for key in keys for end in range(1, key.count(".") + 1)}


def test_configuration_keys_and_variables_exist() -> None:
    known = known_keys()
    code = "\n".join(path.read_text() for path in (PROJECT_ROOT / "ltv_assets").rglob("*.py"))

    def unknown(page: Path) -> Iterator[str]:
        for key in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:: [^`]*)?`", prose(page)):
            if key.split(".")[0] in Config.model_fields and not re.search(r"\.(ya?ml|py|md|json)$", key) and key not in known:
                yield f"no configuration key {key}"
        yield from (f"nothing reads {name}" for name in re.findall(r"\bLTV_[A-Z_]+\b", page.read_text()) if name not in code)

    no_page_has(unknown)


def test_pages_name_no_folder_of_anybody() -> None:
    no_page_has(lambda page: re.findall(r"(?<![\w.])/(?:home|Users|root|work)/\S*", page.read_text()))


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


def test_files_named_in_the_text_exist() -> None:
    named = re.compile(r"`((?:ltv_assets|ltv_assets_tests|config|docs|benchmarks)/[\w./-]+\.\w+)`")
    no_page_has(lambda page: [name for name in named.findall(prose(page)) if not (PROJECT_ROOT / name).exists()])


def test_configuration_in_yaml_blocks_is_accepted() -> None:
    for page in PAGES:
        for block in blocks(page, "yaml"):
            tree = yaml.safe_load(block)
            if isinstance(tree, dict) and set(tree) & set(Config.model_fields):
                parse_config(block, page)  # its message names the page
