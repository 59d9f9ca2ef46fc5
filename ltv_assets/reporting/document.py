"""Documents of headings, sentences, tables and pictures: one self-contained HTML page, or Markdown.

What belongs here: how a document looks. What does not: its content (``report.py``, ``model_card.py``). The page holds its style and its
pictures and asks for nothing else, neither scripts nor fonts nor another file; the same content gives the same bytes.
Text may hold `code` between backticks; everything else in it is shown as it stands.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ltv_assets.reporting.formatting import Figure, count, usd

NUMERIC = re.compile(r"[-+]?[\d ]*(\.\d+)?( \.\. [-+]?\d+\.\d+)?")
"""A figure, an interval, a dash or nothing."""

Cell: TypeAlias = str | Figure


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells below a header. ``names``: one identifier per row, for those who read the page by program."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.header)]
        if wrong or (self.names and len(self.names) != len(self.rows)):
            raise ValueError(f"every row needs {len(self.header)} cells and every row a name or none has: {wrong[:1] or self.names}")


@dataclass(frozen=True, slots=True)
class Picture:
    """PNG bytes and what they show."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The picture inline, as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True, slots=True)
class Points:
    """A list of sentences."""

    items: tuple[str, ...]


Block: TypeAlias = str | Table | Picture | Points


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """The heading as the end of a link."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Document:
    """A title, a few sentences, and sections."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def to_html(document: Document) -> bytes:
    """The document as one HTML page (UTF-8) that needs no other file and runs no script."""
    return _environment().get_template("document.html").render(document=document).encode()


def to_markdown(document: Document) -> bytes:
    """The document as Markdown (UTF-8). Pictures are left out: only their captions stay."""
    parts = [f"# {document.title}", *document.lead]
    for section in document.sections:
        parts.append(f"## {section.title}")
        parts += [_markdown(block) for block in section.blocks]
    return ("\n\n".join(parts) + "\n").encode()


def _markdown(block: Block) -> str:
    if isinstance(block, Points):
        return "\n".join(f"- {item}" for item in block.items)
    if isinstance(block, Picture):
        return f"*{block.caption}*"
    if isinstance(block, str):
        return block
    lines = ["| " + " | ".join(block.header) + " |", "|" + "|".join("---:" if right else "---" for right in _numeric(block)) + "|"]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in block.rows]
    return "\n".join(lines)


def _numeric(table: Table) -> list[bool]:
    """Columns of figures and intervals, which are set flush right and never broken."""
    columns = [[str(row[i]) for row in table.rows] for i in range(len(table.header))]
    return [any(column) and all(NUMERIC.fullmatch(text) for text in column) for column in columns]


def _prose(text: str) -> Markup:
    """Escaped text with `code` marked up."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def sentences(block: str, **values: Any) -> tuple[str, ...]:
    """The lines of one block of ``templates/sentences.txt``, filled with values; lines that stay empty are left out."""
    template = _environment().get_template("sentences.txt")
    lines = "".join(template.blocks[block](template.new_context(values))).split("\n")
    return tuple(line for line in lines if line)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ltv_assets.reporting"),
        autoescape=lambda name: name is not None and name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tests: dict[str, Any] = {"table": Table, "picture": Picture, "points": Points, "figure": Figure}
    for name, kind in tests.items():
        environment.tests[name] = lambda value, kind=kind: isinstance(value, kind)
    environment.filters |= {"prose": _prose, "numeric": _numeric, "count": count, "usd": usd}
    return environment
