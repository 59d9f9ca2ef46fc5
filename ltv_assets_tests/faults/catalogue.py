"""The list of faults: what can go wrong, which of the answers it gets, and the message a person sees.

A test of this folder declares its fault with ``@fault`` and receives it as the argument ``fault``; it injects the damage
and holds the real message against the declared one. ``docs/faults.md`` is generated from the same declarations, so the
documented message is the one a test has seen.

    @fault("files", "zero bytes", answer="quarantine", message="<file>: zero bytes; upload the file again", inject=empty)
    @fault("files", "not parquet", answer="quarantine", message="<file>: not a readable parquet file: <detail>", inject=text)
    def test_broken_file_is_set_aside_with_its_reason(fault: Fault, data: Path) -> None:
        fault.inject(part(data))
        ...
        assert fault.told(messages)["file"] == "train/datetime=2025-10-01-02-00/part-0.parquet"

``<name>`` stands for anything on the same line and is returned by ``told``; the same name twice stands for the same text.
A test that ends without having called ``told`` fails. What cannot be had on one machine is listed with ``unreachable``.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

Answer = Literal["reject", "quarantine", "degrade", "accept", "recover"]
Family = Literal["files", "schema", "values", "labels and windows", "process", "services", "configuration", "security", "output"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True)
class Fault:
    """One declared fault; ``given`` holds whatever else the declaration hands to its test, ``inject`` above all."""

    family: Family
    case: str
    answer: Answer
    message: str
    given: dict[str, Any] = field(default_factory=dict, compare=False)
    heard: list[str] = field(default_factory=list, compare=False)

    def __getattr__(self, name: str) -> Any:
        given = self.__dict__.get("given", {})
        if name not in given:
            raise AttributeError(f"{self!r} was declared without {name}=")
        return given[name]

    @property
    def pattern(self) -> re.Pattern[str]:
        """The message as a pattern over one line of text."""
        seen: set[str] = set()
        parts = []
        for literal, name in re.findall(r"([^<]+)|<(\w+)>", self.message):
            if literal:
                parts.append(re.escape(literal))
            elif name in seen:
                parts.append(f"(?P={name})")
            else:
                seen.add(name)
                parts.append(f"(?P<{name}>.+?)")
        ends = self.message.endswith(">")
        return re.compile("".join(parts) + ("$" if ends else ""), re.MULTILINE)

    def told(self, text: str | Iterable[str]) -> dict[str, str]:
        """Assert that a line of ``text`` says the declared message; returns what stood in the places of its ``<names>``."""
        joined = text if isinstance(text, str) else "\n".join(text)
        found = self.pattern.search(joined)
        assert found, f"expected the message\n  {self.message}\nfound\n  {joined or '(nothing)'}"
        self.heard.append(found.group())
        return found.groupdict()

    def silent(self, problems: Iterable[str] = ()) -> None:
        """Assert that what is no fault after all is no problem either; stands in for ``told`` where the answer is accept."""
        assert self.answer == "accept"
        assert list(problems) == []
        self.heard.append("")


@dataclass(frozen=True)
class Unreachable:
    """A fault of the list that no test can inject here, and why."""

    family: Family
    case: str
    why: str


CATALOGUE: list[Fault] = []
UNREACHABLE: list[Unreachable] = []


def fault(family: Family, case: str, *, answer: Answer, message: str, **given: Any) -> Callable[[Test], Test]:
    """Declare that the decorated test injects one fault; several declarations on one test run it once for each."""

    def register(test: Test) -> Test:
        declared = Fault(family, case, answer, message, given)
        CATALOGUE.append(declared)
        test.__dict__["faults"] = [declared, *test.__dict__.get("faults", [])]
        return test

    return register


def unreachable(family: Family, case: str, *, why: str) -> None:
    """List a fault that cannot be had on two cores and loopback."""
    UNREACHABLE.append(Unreachable(family, case, why))


def whole_catalogue() -> tuple[list[Fault], list[Unreachable]]:
    """Every declaration of this folder, families in their order, cases as declared in theirs."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        importlib.import_module(f"ltv_assets_tests.faults.{path.stem}")
    unique = {(f.family, f.case): f for f in CATALOGUE}
    return sorted(unique.values(), key=lambda f: (FAMILIES.index(f.family), f.case)), sorted(
        UNREACHABLE, key=lambda u: (FAMILIES.index(u.family), u.case)
    )


def markdown() -> Iterator[str]:
    """The catalogue as Markdown: one table per family, then what cannot be injected."""
    faults, missing = whole_catalogue()
    for family in FAMILIES:
        rows = [f for f in faults if f.family == family]
        if rows:
            yield f"### {family}\n\n| fault | answer | message |\n|---|---|---|"
            yield "\n".join(f"| {_cell(f.case)} | {f.answer} | {f'`{_cell(f.message)}`' if f.message else ''} |" for f in rows) + "\n"
    if missing:
        yield "### Not injected\n\n| family | fault | why |\n|---|---|---|"
        yield "\n".join(f"| {u.family} | {_cell(u.case)} | {_cell(u.why)} |" for u in missing) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("`", "'")
