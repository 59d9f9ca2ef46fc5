"""Loading of the configuration from YAML and the environment.

What belongs here: the file in force, its parsing with messages that name file, line and key, the paths of the environment.
What does not: the keys themselves (``schema.py``). ``LTV_CONFIG`` chooses the file, ``LTV_DATA_ROOT`` and ``LTV_WAREHOUSE``
replace its two paths. Next to read: ``schema.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ltv_assets.core.config.schema import Config, at_home, subsections
from ltv_assets.core.errors import ConfigError
from ltv_assets.core.yaml_text import YamlText

PROJECT_ROOT = Path(__file__).resolve().parents[3]
DEFAULT_CONFIG = "config/config_test.yaml"


def parse_config(text: str, file: Path, *, proposed: bool = False) -> Config:
    """Parse one YAML text; ``file`` is only named in messages. ``proposed``: the contract it names need not be there yet.

    Raises ConfigError with file, line and key for a syntax error, an unknown key, a wrong type or a value out of range, and for a
    contract that is not there.
    """
    source = YamlText(text, file, whole_numbers=True)
    raw = {} if source.tree is None else source.tree
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{file}:1: expected a mapping of sections, found {type(raw).__name__}")
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            if problem["type"] == "literal_error" and isinstance(problem["input"], Mapping) and "[" in str(problem["loc"][-1]):
                continue  # one arm of a union; the problems of the other say more
            *above, last = problem["loc"] or ("",)
            # The arms of a union are no keys; an unknown key is one, however it is spelt.
            path = tuple(p for p in above if not _is_arm(p))
            path += (last,) if problem["loc"] and (problem["type"] == "extra_forbidden" or not _is_arm(last)) else ()
            lines.append(f"{placed(source, file, path)}: {complaint(source, path, problem, _keys_beside(path))}")
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    if not proposed and not os.path.isfile(_resolve(config.contract)):  # noqa: PTH113 - Path.is_file raises for a name that is too long
        expected = "expected a file such as config/contract.yaml"
        raise ConfigError(f"{placed(source, file, ('contract',))}: {expected}, found none at {_resolve(config.contract)}")
    return config


def _is_arm(part: int | str) -> bool:
    return isinstance(part, str) and (part == "DateRanges" or "[" in part)


def placed(source: YamlText, file: Path, path: tuple[Any, ...]) -> str:
    """``file:line: key`` of a key, as messages begin."""
    line = source.line_of(path)
    return f"{file}:{line}: {dotted(path)}" if line else f"{file}: {dotted(path)}"


def dotted(path: tuple[Any, ...]) -> str:
    """A key as it is written in messages and in the documentation."""
    return ".".join(str(p) for p in path) or "(top level)"


def complaint(source: YamlText, path: tuple[Any, ...], problem: Any, known: Sequence[str]) -> str:
    """One pydantic problem in words: what was expected, and what the file says; ``known`` are the keys it may have meant."""
    if problem["type"] == "extra_forbidden":
        close = get_close_matches(str(path[-1]), known, 1)
        return f"unknown key; did you mean {close[0]}?" if close else f"unknown key; expected one of {', '.join(known)}"
    if problem["type"] == "missing":
        return "missing; give it a value"
    said = problem["msg"].removeprefix("Value error, ")
    said = f"expected {said.removeprefix('Input should be ')}" if said.startswith("Input should be ") else said
    said = next((f"expected {words}" for kind, words in _EXPECTED.items() if problem["type"].startswith(kind)), said)
    written, found = source.written(path), problem["input"]
    shown = repr(found) if written is None or isinstance(found, str) else written or "nothing"
    return f"{said}, found {shown:.80}"


_EXPECTED = {
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "tuple_type": "a list",
    "too_short": "at least one value",
    "dict_type": "keys and values",
    "model_": "keys and values",
}
"""What is said for pydantic's words, by the beginning of its name for the problem."""


def _keys_beside(path: tuple[Any, ...]) -> list[str]:
    """The keys that exist where ``path`` stands."""
    section: type[BaseModel] = Config
    for part in path[:-1]:
        field = section.model_fields.get(str(part))
        section = next(iter(subsections(field.annotation)), section) if field is not None else section
    return list(section.model_fields)


def _resolve(path: Path) -> Path:
    return path if path.is_absolute() else (PROJECT_ROOT / path)


def config_path() -> Path:
    """The configuration file in force: ``LTV_CONFIG``, else the simulated one."""
    name = os.environ.get("LTV_CONFIG") or DEFAULT_CONFIG
    path = _of_environment("LTV_CONFIG", name)
    if not path.is_absolute() and not path.exists():
        path = PROJECT_ROOT / path
    return path.resolve()


def _of_environment(variable: str, text: str) -> Path:
    """The path an environment variable names; raises ConfigError naming the variable if no folder can have that name."""
    try:
        path = at_home(Path(text))
        path.exists()
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"environment variable {variable}: expected a path in UTF-8, found {text.encode(errors='replace')!r}") from None
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"environment variable {variable}: expected a path, found {text!r:.80} ({reason})") from None
    return path


@lru_cache(maxsize=8)
def _load(path: Path, mtime_ns: int, data_root: str | None, warehouse: str | None) -> Config:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    config = parse_config(text, path)
    if config.compute.engine == "dask" and find_spec("distributed") is None:
        raise ConfigError(f"{path}: compute.engine is dask, but Dask is not installed; run `pip install 'ltv-assets[dask]'`")
    data = config.data.model_copy(
        update={"root": _of_environment("LTV_DATA_ROOT", data_root).resolve() if data_root else _resolve(config.data.root)}
    )
    if data.sample_submission is not None:
        data = data.model_copy(update={"sample_submission": _resolve(data.sample_submission)})
    root = _of_environment("LTV_WAREHOUSE", warehouse).resolve() if warehouse else _resolve(config.warehouse.root)
    # The simulated data of the small configuration lives inside the warehouse, so it moves with it.
    if not data_root and warehouse and config.data.root.is_relative_to(config.warehouse.root):
        data = data.model_copy(update={"root": root / config.data.root.relative_to(config.warehouse.root)})
    _refuse_patterns({"warehouse.root (LTV_WAREHOUSE)": root, "data.root (LTV_DATA_ROOT)": data.root})
    return config.model_copy(
        update={
            "data": data,
            "warehouse": config.warehouse.model_copy(update={"root": root}),
            "features": _resolve(config.features),
            "contract": _resolve(config.contract),
        }
    )


def _refuse_patterns(paths: Mapping[str, Path]) -> None:
    """DuckDB expands wildcards in file names: a folder named with one would be read as a pattern, not as itself."""
    for name, path in paths.items():
        if any(character in str(path) for character in "*?["):
            raise ConfigError(f"{name}: the path {path} holds one of * ? [, which DuckDB takes for a pattern; choose another folder")


def load_config(path: Path | None = None) -> Config:
    """Load the configuration in force, with the environment's paths applied; all paths in it are absolute."""
    chosen = (path or config_path()).resolve()
    if not chosen.is_file():
        raise ConfigError(f"{chosen}: configuration file not found; set LTV_CONFIG to an existing file such as config/config.yaml")
    return _load(chosen, chosen.stat().st_mtime_ns, os.environ.get("LTV_DATA_ROOT") or None, os.environ.get("LTV_WAREHOUSE") or None)
