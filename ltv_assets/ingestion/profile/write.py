"""The text of ``config.yaml``, ``contract.yaml`` and ``features.yaml`` for a proposal, with what was guessed, why and how sure.

What belongs here: YAML as a person would write it, and its check by the loaders that read it later. What does not: guesses
(``proposal.py``).
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from ltv_assets.core.config import PROJECT_ROOT, parse_config
from ltv_assets.core.contract import parse_contract
from ltv_assets.core.errors import ConfigError, DataError
from ltv_assets.features.registry import load_registry
from ltv_assets.ingestion.profile.proposal import GROUPS, Guess, PlannedColumn, Proposal

FILES = ("config.yaml", "contract.yaml", "features.yaml")
WIDTH = 128
PRICE_TIERS = (100, 200, 400, 700, 1000)

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_ ./%=<>-]*[A-Za-z0-9_./%=<>-]|[A-Za-z_]")
_WORDS = frozenset(["true", "false", "null", "yes", "no", "on", "off", "nan", "inf"])


def write_proposal(proposal: Proposal, out: Path) -> tuple[Path, ...]:
    """Write the three files into a folder, checked by what reads them; returns their paths.

    Raises DataError, before anything is written, if one of them is there already.
    """
    out = out.expanduser().resolve()
    there = [out / name for name in FILES if (out / name).exists() or (out / name).is_symlink()]
    if there:
        raise DataError(f"{there[0]}: exists already and is not overwritten; remove it, or give another folder with --out")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: expected a folder to write {', '.join(FILES)} into, found a file; give another one with --out")
    texts = texts_of(proposal, out)
    check(texts)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    return tuple(out / name for name in FILES)


def check(texts: Mapping[str, str]) -> None:
    """Read the texts as the project would; raises ConfigError where one of them is wrong."""
    contract = parse_contract(texts["contract.yaml"], Path("contract.yaml"))
    parse_config(texts["config.yaml"], Path("config.yaml"), proposed=True)
    folder = Path(tempfile.mkdtemp(prefix="ltv-init-"))
    try:
        (folder / "features.yaml").write_text(texts["features.yaml"], encoding="utf-8")
        load_registry(folder / "features.yaml", contract)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{folder}/", "")) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def texts_of(proposal: Proposal, out: Path) -> dict[str, str]:
    """{file: text} of a proposal whose files will stand in ``out``."""
    return {"config.yaml": _config(proposal, out), "contract.yaml": _contract(proposal), "features.yaml": _features(proposal)}


# --------------------------------------------------------------------------------------------------------------- config


def _config(p: Proposal, out: Path) -> str:
    said = {g.about: g for g in p.guesses}
    bounds = p.bounds
    data = {"root": _path(p.folders.root), "dates": "auto"}
    lines = [
        f"# Written by `ltv init` from a sample of {p.folders.root}: correct what is wrong. Keys that are not here have the defaults of",
        "# docs/configuration.md.",
        "",
        f"contract: {_path(out / 'contract.yaml')}",
        f"features: {_path(out / 'features.yaml')}",
        "",
        "data:",
        *_commented(said.get("labelled days"), "  "),
        *(f"  {key}: {_quoted(value)}" for key, value in data.items()),
        *_folders(p),
    ]
    if p.gap_days:
        lines += [*_commented(said.get("days without data"), "  "), f"  gap_days: [{', '.join(map(str, p.gap_days))}]"]
    lines += [
        "",
        "windows:",
        *_commented(said.get("window"), "  "),
        f"  min_train_days: {p.window_days[0]}",
        f"  max_train_days: {p.window_days[1]}",
        "",
        "checks:",
        *_commented(said.get("bounds of checks"), "  "),
        f"  rmsle_max: {bounds['rmsle_max']:g}",
        f"  zero_rate_tolerance: {bounds['zero_rate_tolerance']:g}",
        f"  ece_max: {bounds['ece_max']:g}",
        "",
        "automation:",
        f"  retrain_rmsle_max: {bounds['rmsle_max']:g}",
        f"  retrain_zero_rate_gap: {bounds['retrain_zero_rate_gap']:g}",
        "",
        "warehouse:",
        "  # One warehouse for each table.",
        f"  root: warehouse/{p.name}",
        "",
    ]
    return "\n".join(lines)


def _folders(p: Proposal) -> list[str]:
    """Where labelled and unlabelled days stand below the root, unless that is where they are looked for anyway."""
    train, test = p.split_folders
    if (train, test) == ("train", "test"):
        return []
    if train == ".":
        return [
            "  # Days with and without labels stand side by side: a day without labels is scored.",
            '  train_folder: "."',
            '  test_folder: "."',
        ]
    return [f"  train_folder: {_quoted(train)}", f"  test_folder: {_quoted(test)}"]


def _path(path: Path) -> str:
    """A path below the project as it is written there, any other in full."""
    return _quoted(str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path))


# ------------------------------------------------------------------------------------------------------------- contract


def _contract(p: Proposal) -> str:
    said = {g.about: g for g in p.guesses}
    moment = p.moment
    lines = [
        f"# What a row of this table is. Written by `ltv init` from {p.rows} rows: each guess with its reason and how sure it is (high,",
        "# medium, low). Meaning of the keys: docs/data.md.",
        "",
        f"name: {p.name}",
        "",
        *_commented(said.get("identifier")),
        f"identifier: {p.column('identifier').name}",
        "",
        *_commented(said.get("time")),
        f"time: {{layout: {_quoted(p.folders.pattern) if p.folders.pattern else 'null'}, column: {moment or 'null'}}}",
        "",
        "# None of these is ever a feature.",
        "labels:",
        *_commented(said.get("payer flag"), "  "),
        f"  payer: {p.payer or 'null'}",
        *_commented(said.get("revenue"), "  "),
        "  revenue:                       # horizon in days: column, shortest first; the first is predicted",
        *(f"    {horizon}: {name}" for horizon, name in p.revenue.items()),
    ]
    lines += [f"  kept: [{', '.join(p.kept)}]"] if p.kept else []
    lines += [f"  others: [{', '.join(p.others)}]"] if p.others else []
    if p.own_keys:
        lines += ["", "# Kinds of keys of maps and lists, and the column that holds the row's own key of that kind.", "own_keys:"]
        lines += [f"  {domain}: {name}" for domain, name in p.own_keys.items()]
    lines += ["", *_commented(said.get("segments")), f"segments: [{', '.join(p.segments)}]"]
    if p.cold_start:
        lines += ["# Values that training never saw are a segment of their own.", f"cold_start: {p.cold_start}"]
    used = [g for g in GROUPS if any(c.group == g and c.role == "feature" for c in p.columns)]
    if used:
        lines += ["", "groups:", *(f"  {group}: {_quoted(GROUPS[group])}" for group in used)]
    lines += ["", "columns:"]
    for role, heading in (
        ("identifier", ""),
        ("time", ""),
        ("label", "Known only afterwards."),
        ("feature", "Known when a row is scored."),
    ):
        chosen = [c for c in p.columns if c.role == role and (role != "time" or c.name == moment)]
        lines += [f"  # {heading}"] if heading and chosen else []
        for column in chosen:
            lines += _declared(column)
    left_out = [c for c in p.columns if c.role == "left out"]
    lines += [line for c in left_out for line in _wrapped(f"{c.facts.source} ({c.facts.physical}) is not declared: {c.why}.", "  ")]
    return "\n".join([*lines, ""])


def _declared(column: PlannedColumn) -> list[str]:
    """A column's entry, below the reason where it is not simply a value."""
    facts = column.facts
    entry: dict[str, Any] = {"name": column.name}
    if column.role != "feature":
        entry["role"] = column.role
    if column.group is not None and column.role == "feature":
        entry["group"] = column.group
    entry |= {"type": facts.type, "meaning": facts.meaning}
    if facts.unit is not None:
        entry["unit"] = facts.unit
    if column.keyed_by is not None:
        entry["keyed_by"] = column.keyed_by
    if facts.cycle is not None and column.role == "feature":
        entry["cycle"] = facts.cycle
    if facts.calendar and column.role == "feature":
        entry["calendar"] = True
    if facts.missing >= 0.00005 and column.role != "label":
        entry["missing_rate"] = round(facts.missing, 4)
    if column.name != facts.source.casefold():
        entry["source"] = facts.source
    comment = []
    if column.suspect:
        comment = _wrapped(f"LOOK AT THIS: {column.suspect}", "  ")
    elif column.why and column.noted:
        comment = _wrapped(f"{column.why} ({_certainty(column.sure)})", "  ")
    lines = [""]
    for key, value in entry.items():
        word = f"{key}: {_quoted(value)}" + (", " if key != list(entry)[-1] else "}")
        if len(lines[-1]) + len(word) > WIDTH - 6:
            lines.append("")
        lines[-1] += word
    first, *more = (line.rstrip() for line in lines)
    return [*comment, f"  - {{{first}", *(f"     {line}" for line in more)]


# ------------------------------------------------------------------------------------------------------------- features


def _features(p: Proposal) -> str:
    said = {g.about: g for g in p.guesses}
    lines = [
        "# What is computed from every row, by column: `value` keeps the column's name, any other statistic is column__statistic.",
        "# Written by `ltv init`; the statistics of each type, and how to combine columns, stand in docs/features.md.",
        *_commented(said.get("features")),
        "",
        "# Edges of the statistic `tier`, which nothing here uses.",
        f"price_tiers: [{', '.join(map(str, PRICE_TIERS))}]",
        "",
        "groups:",
    ]
    for group, heading in GROUPS.items():
        columns = [c for c in p.columns if c.group == group and c.role == "feature"]
        if not any(c.statistics for c in columns):
            continue
        lines += [f"  {group}:", "    enabled: true", f"    description: {_quoted(heading.split(': ', 1)[1])}", "    columns:"]
        for column in columns:
            if column.statistics:
                lines.append(f"      {column.name}: [{', '.join(column.statistics)}]")
            else:
                lines += _wrapped(f"{column.name}: {column.why}", "      ")
        lines.append("")
    if p.indicators:
        lines += [
            "  # One indicator for each set of columns that are missing in the same rows.",
            "  missing:",
            "    enabled: true",
            "    description: which columns say nothing about the row",
            "    indicators:",
            *(f"      {name}: [{', '.join(columns)}]" for name, columns in p.indicators.items()),
        ]
    return "\n".join([*lines, ""]).replace("\n\n\n", "\n\n")


# ----------------------------------------------------------------------------------------------------------------- YAML


def _certainty(sure: float) -> str:
    return Guess("", "", "", sure).certainty


def _commented(guess: Guess | None, indent: str = "") -> list[str]:
    """A guess as comment lines."""
    return _wrapped(f"{guess.choice}: {guess.why} ({guess.certainty})", indent) if guess is not None else []


def _wrapped(text: str, indent: str) -> list[str]:
    # A comment ends with its line, whatever a name holds.
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return [f"{indent}# {line}" for line in wrap(plain, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)]


def _quoted(value: Any) -> str:
    """A value as YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text, ensure_ascii=False)


def summary(proposal: Proposal) -> Iterable[Guess]:
    """The guesses in the order in which they are shown: what all else depends on, then single columns."""
    general = [g for g in proposal.guesses if not g.about.startswith("column ")]
    return (*general, *(g for g in proposal.guesses if g.about.startswith("column ")))
