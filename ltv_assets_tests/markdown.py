"""Reading the documentation: its pages, their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ltv_assets.core.config import PROJECT_ROOT

DOCS = PROJECT_ROOT / "docs"
PAGES = sorted(
    {
        *DOCS.glob("*.md"),
        *(PROJECT_ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "warehouse/README.md", "benchmarks/RESULTS.md")),
    }
)
PAGES = [page for page in PAGES if page.is_file()]
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*) *(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def blocks(page: Path, language: str, *, excerpts: bool = True) -> list[str]:
    """Bodies of the fenced blocks of a language; those marked ``excerpt`` only if asked for."""
    found = (match for match in FENCE.finditer(page.read_text()) if match["language"] == language)
    return [match["body"] for match in found if excerpts or match["rest"].strip() != "excerpt"]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def simple_commands(script: str) -> Iterator[list[str]]:
    """Words of every simple command of a shell block, without assignments in front of it."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;()"):
                while words and ASSIGNMENT.match(words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def commands(page: Path) -> list[list[str]]:
    """Every command of a page: of its ``sh`` and ``bash`` blocks, and behind the prompts of its ``console`` blocks."""
    scripts = [*blocks(page, "sh"), *blocks(page, "bash")]
    scripts += ["\n".join(line[2:] for line in body.splitlines() if line.startswith("$ ")) for body in blocks(page, "console")]
    return [words for script in scripts for words in simple_commands(script)]
