"""YAML as people mean it: words stay words, and every key knows its line.

What belongs here: reading a YAML text by the core schema of YAML 1.2, in which ``off``, ``no`` and ``12:30`` are text, and
the place and the wording of a key. PyYAML's own rules are those of 1.1, in which they are false and a number of seconds. What
does not: what any key means (``config/schema.py``, ``features/registry.py``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ltv_assets.core.errors import ConfigError

MOST_NODES = 100_000
"""Values of a file with its aliases written out; a few lines of aliases can stand for more than any memory holds."""

_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_WHOLE = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2 and the merge key; days and hours stay text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as PyYAML declares it


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    try:
        return int(node.value)
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, f"{node.value:.40} is no integer", node.start_mark) from None


def _resolve(name: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), list(first) or [""])


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("null", r"^(?:~|null|Null|NULL)$", "~nN")
_resolve("null", r"^$", "")
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")
_resolve("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+.")
_resolve("merge", r"^<<$", "<")
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


class YamlText:
    """A YAML text as plain values (``tree``), with the line and the wording of every key."""

    def __init__(self, text: str, file: Path, *, whole_numbers: bool = False) -> None:
        """Parse ``text``; ``file`` is only named in messages. ``whole_numbers``: a key may be one, not only a word.

        Raises ConfigError with file and line for a syntax error, a key that stands twice, and aliases without end.
        """
        try:
            loader = _Loader(text)
            self._root = loader.get_single_node()
            _require_plain(self._root, file, (*_KEY_TAGS, _WHOLE) if whole_numbers else _KEY_TAGS)
            self.tree: Any = None if self._root is None else loader.construct_document(self._root)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{file}:{line}: not valid YAML: a control character is not allowed in text") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f":{mark.line + 1}" if mark is not None else ""
            raise ConfigError(f"{file}{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
        except RecursionError:
            raise ConfigError(f"{file}: not valid YAML: nested too deeply; write at most a few levels") from None
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"{file}: not valid YAML: {error}") from None

    def line_of(self, path: tuple[Any, ...]) -> int | None:
        """1-based line of a key; of its nearest parent when the key itself is absent."""
        return self._find(path)[0]

    def written(self, path: tuple[Any, ...]) -> str | None:
        """The text of a plain value as it stands in the file; None for anything else."""
        _, node = self._find(path)
        return node.value if isinstance(node, yaml.ScalarNode) else None

    def _find(self, path: tuple[Any, ...]) -> tuple[int | None, yaml.Node | None]:
        node, line = self._root, None
        for part in path:
            found: tuple[yaml.Node, yaml.Node] | None = None
            if isinstance(node, yaml.MappingNode):
                found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                found = (node.value[part], node.value[part])
            if found is None:
                return line, None
            line, node = found[0].start_mark.line + 1, found[1]
        return line, node


def _require_plain(root: yaml.Node | None, file: Path, tags: tuple[str, ...]) -> None:
    """Refuse a key that stands twice or is no text, an alias inside its own value, and aliases that stand for too much."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        line = node.start_mark.line + 1
        if id(node) in open_nodes:
            raise ConfigError(f"{file}:{line}: an alias (*) stands inside the value it refers to; write the value out")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            children = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
            sizes[id(node)] = 1 + sum(map(size, children if isinstance(node, yaml.CollectionNode) else ()))
            open_nodes.discard(id(node))
            if isinstance(node, yaml.MappingNode):
                _require_distinct_keys(node, file, tags)
        if sizes[id(node)] > MOST_NODES:
            raise ConfigError(f"{file}:{line}: aliases (*) stand for more than {MOST_NODES} values; write out what is meant")
        return sizes[id(node)]

    if root is not None:
        size(root)


def _require_distinct_keys(node: yaml.MappingNode, file: Path, tags: tuple[str, ...]) -> None:
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in tags:
            found = repr(key.value) if isinstance(key, yaml.ScalarNode) else "a list or a mapping"
            raise ConfigError(f"{file}:{line}: expected a word as key, found {found:.60}")
        name = key.value if key.tag != _WHOLE else key.value.lstrip("+0") or "0"
        if name in seen:
            raise ConfigError(f"{file}:{line}: key '{key.value}' stands twice (first on line {seen[name]}); remove one")
        seen[name] = line
