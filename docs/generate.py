"""Write the generated parts of the documentation: tables of configuration keys, checks, columns, relations, features and metrics.

A page in this folder is written by hand, except for what stands between ``<!-- generated: NAME -->`` and
``<!-- end of NAME -->``. This script fills those blocks from the code, so a table can never disagree with it.

    python docs/generate.py            rewrite the blocks that are out of date
    python docs/generate.py --check    name the pages that are out of date and exit 1
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from ltv_assets.core.asset_specs import ASSET_NAMES, CONFIG_KEYS, RELATIONS
from ltv_assets.core.check_specs import check_bounds, check_specs, standing_checks
from ltv_assets.core.config import PROJECT_ROOT, Config, walk_keys
from ltv_assets.core.contract import Column, Contract, load_contract
from ltv_assets.defs import asset_checks as asset_checks
from ltv_assets.features.registry import Registry, load_registry
from ltv_assets.features.schema import column_table
from ltv_assets.modeling.evaluation.segments import metrics_markdown
from ltv_assets.serving.metrics import DESCRIPTIONS

DOCS = PROJECT_ROOT / "docs"
PAGE_WIDTH = 132
"""Columns of what commands print, as pages show it."""
BLOCK = re.compile(r"<!-- generated: (?P<name>[a-z-]+) -->\n.*?<!-- end of (?P=name) -->", re.DOTALL)

LABELS = "Labels: known only after the impression, never a feature"


# ------------------------------------------------------------------------------------------------------------- Markdown


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def code(text: str) -> str:
    """Text as inline code."""
    return f"`{text}`"


# -------------------------------------------------------------------------------------------------------- configuration


def field_of(key: str) -> tuple[FieldInfo, type[BaseModel]]:
    """The field a dotted key of the configuration names, and the section it belongs to."""
    section: type[BaseModel] = Config
    field: FieldInfo | None = None
    for part in key.split("."):
        if field is not None:
            section = next(a for a in (field.annotation, *get_args(field.annotation)) if isinstance(a, type) and issubclass(a, BaseModel))
        field = section.model_fields[part]
    assert field is not None
    return field, section


def default_of(key: str) -> str:
    """Default of a key as YAML would show it; empty where a value must be given."""
    value: Any = Config()
    for part in key.split("."):
        if not isinstance(value, BaseModel):
            return ""
        value = getattr(value, part)
    return code(_yaml(value))


def _yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        return f"{value:.1f}"
    return f'"{value}"' if isinstance(value, str) and not re.fullmatch(r"[\w./-]+", value) else str(value)


def accepted_by(field: FieldInfo) -> str:
    """Which values a field takes, from its type and its bounds."""
    annotation: Any = field.annotation
    for item in field.metadata:
        annotation = Annotated[annotation, item]
    return _accepted(TypeAdapter(annotation).json_schema())


def _accepted(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_accepted(s) for s in schema["anyOf"] if "$ref" not in s)
    if "enum" in schema:
        return ", ".join(code(_yaml(v)) for v in schema["enum"])
    if "const" in schema:
        return code(_yaml(schema["const"]))
    kind = schema.get("type")
    if kind == "array":
        return f"list of: {_accepted(schema['items'])}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping of names to {_accepted(inner)}" if isinstance(inner, Mapping) else "mapping"
    if kind in ("integer", "number"):
        return _range(schema, "whole number" if kind == "integer" else "number")
    if kind == "string":
        return {"date": "day (`YYYY-MM-DD`)", "path": "path"}.get(schema.get("format", ""), "text")
    return {"boolean": "`true`, `false`", "null": "`null`"}.get(str(kind), str(kind))


def _range(schema: Mapping[str, Any], word: str) -> str:
    ends = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))
    if "minimum" in schema and "maximum" in schema:
        return f"{word}, {schema['minimum']:.10g} to {schema['maximum']:.10g}"
    return ", ".join([word, *(f"{text} {schema[name]:.10g}" for name, text in ends if name in schema)])


def configuration() -> str:
    """Every key of the configuration, one table per section."""
    rows: dict[str, list[list[str]]] = {}
    unions: set[str] = set()
    for key, description in walk_keys():
        parts = key.split(".")
        section = parts[0] if len(parts) > 1 else ""
        # A section that may also be a plain value (dates: auto) gets a row of its own before its keys.
        for end in range(1, len(parts)):
            parent = ".".join(parts[:end])
            field, _ = field_of(parent)
            if get_args(field.annotation) and parent not in unions:
                unions.add(parent)
                rows.setdefault(section, []).append([code(parent), default_of(parent), _accepted_union(field), field.description or ""])
        field, _ = field_of(key)
        rows.setdefault(section, []).append([code(key), default_of(key), accepted_by(field), description])
    pages = []
    for section, lines in rows.items():
        title, about = "## Top level", ""
        if section:
            model = field_of(section)[0].annotation
            title, about = f"## {section}", _first_paragraph(model.__doc__ if isinstance(model, type) else "")
        pages.append("\n\n".join(part for part in (title, about, table(("key", "default", "accepts", "meaning"), lines)) if part))
    return "\n\n".join(pages)


def _accepted_union(field: FieldInfo) -> str:
    plain = [a for a in get_args(field.annotation) if not (isinstance(a, type) and issubclass(a, BaseModel))]
    return " or ".join([*(_accepted(TypeAdapter(a).json_schema()) for a in plain), "the keys below"])


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split()).replace("``", "`")


def staleness() -> str:
    """Which keys make which partitions stale."""
    rows = [[code(asset), ", ".join(code(k.replace("{split}", "<split>")) for k in CONFIG_KEYS[asset]) or "none"] for asset in ASSET_NAMES]
    bounds = [[code(check), ", ".join(code(k) for k in keys)] for check, keys in check_bounds().items()]
    return table(("asset", "keys that shape its bytes"), rows) + "\n\n" + table(("check", "keys it judges by"), bounds)


def checks() -> str:
    """Every check by asset: whether it blocks, and what it looks at."""
    partitioned = [(s.asset, s.name, "yes" if s.blocking else "warns", _first_paragraph(s.function.__doc__)) for s in check_specs()]
    standing = [("submission", f.__name__, "warns", _first_paragraph(f.__doc__)) for f in standing_checks()]
    return table(
        ("asset", "check", "blocks", "looks at"), [[code(a), code(n), blocks, text] for a, n, blocks, text in (*partitioned, *standing)]
    )


# -------------------------------------------------------------------------------------------------------------- columns


def raw_columns() -> str:
    """The columns of an impression, by role and group."""
    contract, pages = load_contract(), []
    titles = {"Keys": [c for c in contract.columns if c.is_key], LABELS: [c for c in contract.columns if c.is_label]}
    titles |= {title: [c for c in contract.inputs if c.group == group] for group, title in contract.groups.items()}
    for title, columns in titles.items():
        header = ("column", "type", "unit", "missing", "meaning")
        pages.append(f"### {title}\n\n" + table(header, [_raw_row(c, contract) for c in columns]))
    return "\n\n".join(pages)


def _raw_row(column: Column, contract: Contract) -> list[str]:
    notes = [column.description]
    if column.keyed_by:
        what = "elements" if column.type.startswith("list") else "outer keys" if column.type.startswith("map<string,map") else "keys"
        notes.append(f"{what}: {column.keyed_by.replace('_', ' ')}")
    if column.name in contract.required(labelled=False):
        notes.append("**required**")
    elif column.name in contract.required(labelled=True):
        notes.append("**required in train/**")
    rate = column.missing_rate
    missing = "" if not rate else "below 0.1%" if rate < 0.001 else f"{rate:.1%}"
    return [code(column.name), code(column.type), column.unit or "", missing, "; ".join(notes)]


def relations() -> str:
    """The columns of every relation of the warehouse."""
    pages = []
    for asset in ASSET_NAMES:
        if asset == "flattened_features":
            pages.append("### flattened_features\n\nSee [Flattened columns](#flattened-columns).")
            continue
        rows = [[code(c.name), c.type, c.unit or "", c.description] for c in RELATIONS[asset]]
        pages.append(f"### {asset}\n\n" + table(("column", "type", "unit", "meaning"), rows))
    return "\n\n".join(pages)


def shipped_registry() -> Registry:
    """The registry in ``config/features.yaml``, whatever configuration is in force."""
    return load_registry(PROJECT_ROOT / "config" / "features.yaml")


def flattened() -> str:
    """Every flattened column: keys and labels, then the features by group."""
    registry = shipped_registry()
    columns = {name: [code(name), kind, unit, text] for name, kind, unit, text in column_table(registry)}
    by_group: dict[str, list[str]] = {}
    for feature in registry.features:
        by_group.setdefault(feature.group, []).append(feature.name)
    features = {name for names in by_group.values() for name in names}
    header = ("column", "type", "unit", "meaning")
    count = f"{len(columns)} columns: {len(columns) - len(features)} keys and labels, {len(features)} features."
    pages = [count, "### keys and labels\n\n" + table(header, [row for name, row in columns.items() if name not in features])]
    for group, names in by_group.items():
        pages.append(f"### group {group}\n\n{registry.groups[group].description}\n\n" + table(header, [columns[n] for n in names]))
    return "\n\n".join(pages)


# --------------------------------------------------------------------------------------------------------------- faults


def faults() -> str:
    """Every fault a test injects, with the answer and the message that test has seen."""
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.insert(0, str(PROJECT_ROOT))
    from ltv_assets_tests.faults.catalogue import markdown

    return "\n".join(markdown()).rstrip()


# ----------------------------------------------------------------------------------------------------------- a new table


def your_table() -> str:
    """What `ltv init` prints of the table that the first script of data.md makes."""
    from rich.console import Console

    from ltv_assets.cli.init import guesses
    from ltv_assets.ingestion.profile.proposal import propose

    script = re.search(r"```python\n(.*?)```", (DOCS / "data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert script is not None, "data.md begins with a script that makes a table"
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", script[1]], cwd=folder, check=True)
        printed = io.StringIO()
        Console(file=printed, width=PAGE_WIDTH, color_system=None).print(guesses(propose(Path(folder) / "customers")))
    return "```text\n" + "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n```"


# ---------------------------------------------------------------------------------------------------------------- pages


BLOCKS: Mapping[str, Callable[[], str]] = {
    "configuration": configuration,
    "staleness": staleness,
    "checks": checks,
    "raw-columns": raw_columns,
    "relations": relations,
    "flattened-columns": flattened,
    "metrics": metrics_markdown,
    "faults": faults,
    "your-table": your_table,
    "serving-metrics": lambda: table(("metric", "meaning"), ((code(name), meaning) for name, meaning in DESCRIPTIONS.items())),
}


def filled(text: str) -> str:
    """A page with every block written anew; raises KeyError for a block nobody generates."""
    return BLOCK.sub(lambda match: f"<!-- generated: {match['name']} -->\n{BLOCKS[match['name']]()}\n<!-- end of {match['name']} -->", text)


def outdated() -> dict[Path, str]:
    """{page: its text as it should be} of every page whose generated blocks differ from the code."""
    found = {}
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted != text:
            found[page] = wanted
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite pages that are out of date, or name them with ``--check``; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    options = parser.parse_args(arguments)
    pages = outdated()
    for page, text in pages.items():
        if not options.check:
            page.write_text(text, encoding="utf-8")
        sys.stdout.write(
            f"{page.relative_to(PROJECT_ROOT)}: {'out of date; run python docs/generate.py' if options.check else 'written'}\n"
        )
    return 1 if options.check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
