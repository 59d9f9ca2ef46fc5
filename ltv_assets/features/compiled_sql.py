"""SQL expressions of one row, as one Python function: the same expressions that the engine runs over whole days.

What belongs here: DuckDB's own parse of an expression, written as Python statements, with SQL's rules for NULL, NaN and
division. What does not: the expressions (``sql.py``, ``config/features.yaml``). Next to read: ``one_row.py``.

Arithmetic, comparisons and CASE become Python. Whatever else an expression has (casts of text, dates, lists) is evaluated by
DuckDB itself and remembered by its inputs, of which there are few: an hour, a version, a release date.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import duckdb

Value = float | int | bool | str | None
Compiled = Callable[[Sequence[Value]], tuple[Value, ...]]
Node = dict[str, Any]

REMEMBERED = 65_536
"""Answers of DuckDB that are kept for each expression that it evaluates."""


class _Beyond(Exception):
    """A node that is left to DuckDB."""


def compile_sql(expressions: Sequence[str], types: Mapping[str, str], connection: duckdb.DuckDBPyConnection) -> Compiled:
    """Compile expressions over the named inputs into one function: values in the order of ``types`` in, results in order out.

    ``types``: DuckDB's type of each input. ``connection``: parses, and evaluates what is left to it; kept by the function.
    """
    writer = _Writer(types, connection)
    results = [writer.write(_parse(connection, sql)) for sql in expressions]
    names = "".join(f"v{i}, " for i in range(len(types)))
    body = [f"({names}) = values", *writer.lines, f"return ({''.join(f'{name}, ' for name in results)})"]
    scope: dict[str, Any] = {**_FUNCTIONS, **writer.scope}
    exec(compile("def compiled(values):\n    " + "\n    ".join(body), "<features.yaml>", "exec"), scope)
    compiled: Compiled = scope["compiled"]
    return compiled


def _parse(connection: duckdb.DuckDBPyConnection, expression: str) -> Node:
    found = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT {expression}"]).fetchone()
    assert found is not None
    tree = json.loads(found[0])
    if tree["error"]:
        raise ValueError(f"{expression}: {tree['error_message']}")
    node: Node = tree["statements"][0]["node"]["select_list"][0]
    return node


class _Writer:
    """Statements for the nodes of expressions; a node that occurs twice is computed once."""

    def __init__(self, types: Mapping[str, str], connection: duckdb.DuckDBPyConnection) -> None:
        self.lines: list[str] = []
        self.scope: dict[str, Any] = {}
        self._types = dict(types)
        self._inputs = {name: f"v{i}" for i, name in enumerate(types)}
        self._connection = connection
        self._known: dict[str, str] = {}

    def write(self, node: Node) -> str:
        """Write statements for a node; returns the name of its value."""
        key = json.dumps(_bare(node), sort_keys=True)
        if key not in self._known:
            if node["class"] == "COLUMN_REF":
                self._known[key] = self._inputs[node["column_names"][-1]]
            else:
                try:
                    code = self._code(node)
                except _Beyond:
                    code = self._asked(node)
                self._known[key] = self._assign(code)
        return self._known[key]

    def _assign(self, code: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = {code}")
        return name

    def _code(self, node: Node) -> str:
        match node["class"]:
            case "CONSTANT":
                return self._held(_constant(node))
            case "FUNCTION":
                return self._function(node)
            case "COMPARISON":
                return self._compared(node["type"], self.write(node["left"]), self.write(node["right"]))
            case "BETWEEN":
                x, low, high = (self.write(node[side]) for side in ("input", "lower", "upper"))
                at_least = self._assign(self._compared("COMPARE_GREATERTHANOREQUALTO", x, low))
                at_most = self._assign(self._compared("COMPARE_LESSTHANOREQUALTO", x, high))
                return f"_and({at_least}, {at_most})"
            case "CONJUNCTION":
                name = {"CONJUNCTION_AND": "_and", "CONJUNCTION_OR": "_or"}[node["type"]]
                return f"{name}({', '.join(map(self.write, node['children']))})"
            case "OPERATOR":
                return self._operator(node)
            case "CASE":
                otherwise = self.write(node["else_expr"])
                checks = [(self.write(check["when_expr"]), self.write(check["then_expr"])) for check in node["case_checks"]]
                return " else ".join([*(f"{then} if {when}" for when, then in checks), otherwise])
            case "CAST":
                if _cast_type(node) == "INTEGER" and node["child"]["type"] in _TRUTHS:
                    x = self.write(node["child"])
                    return f"None if {x} is None else int({x})"
        raise _Beyond

    def _function(self, node: Node) -> str:
        name, nodes = node["function_name"], _arguments(node)
        if name not in _ARITHMETIC or len(nodes) not in _ARITHMETIC[name]:
            raise _Beyond
        arguments = [self.write(inner) for inner in nodes]
        code = _ARITHMETIC[name][len(nodes)].format(*arguments)
        if name in _OF_NULLS or not arguments:
            return code
        return f"None if {' or '.join(f'{x} is None' for x in dict.fromkeys(arguments))} else {code}"

    def _compared(self, kind: str, a: str, b: str) -> str:
        if kind not in _COMPARISONS:
            raise _Beyond
        return f"None if {a} is None or {b} is None else {_COMPARISONS[kind].format(a, b)}"

    def _operator(self, node: Node) -> str:
        kind, children = node["type"], node["children"]
        if kind == "OPERATOR_COALESCE":
            return f"_coalesce({', '.join(map(self.write, children))})"
        if kind not in _NULL_TESTS:
            raise _Beyond
        return _NULL_TESTS[kind].format(self.write(children[0]))

    def _asked(self, node: Node) -> str:
        """A call of DuckDB for a node as it stands, by the inputs that occur in it."""
        inputs = sorted({inner["column_names"][-1] for inner in _walk(node) if inner["class"] == "COLUMN_REF"})
        tree = {"error": False, "statements": [_statement(self._connection, node)]}
        found = self._connection.execute("SELECT json_deserialize_sql(?)", [json.dumps(tree)]).fetchone()
        assert found is not None
        given = ", ".join(f'?::{self._types[name]} AS "{name}"' for name in inputs) or "1 AS nothing"
        query, connection = f"{found[0]} FROM (SELECT {given})", self._connection

        @lru_cache(maxsize=REMEMBERED)
        def ask(*values: Value) -> Value:
            with connection.cursor() as cursor:
                row = cursor.execute(query, list(values)).fetchone()
            assert row is not None
            return row[0]  # type: ignore[no-any-return]

        return f"{self._held(ask)}({', '.join(self._inputs[column] for column in inputs)})"

    def _held(self, value: Any) -> str:
        """The name under which the statements find a value: no text of an expression ever becomes code."""
        name = f"k{len(self.scope)}"
        self.scope[name] = value
        return name


# --------------------------------------------------------------------------------------------------- DuckDB's syntax tree


def _statement(connection: duckdb.DuckDBPyConnection, node: Node) -> Node:
    found = connection.execute("SELECT json_serialize_sql('SELECT 1')").fetchone()
    assert found is not None
    statement: Node = json.loads(found[0])["statements"][0]
    statement["node"]["select_list"] = [node]
    return statement


def _walk(node: Any) -> list[Node]:
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    own = [node] if isinstance(node, dict) and "class" in node else []
    return own + [found for child in inner for found in _walk(child)]


def _bare(node: Any) -> Any:
    """A node without its place in the text."""
    if isinstance(node, dict):
        return {key: _bare(value) for key, value in node.items() if not key.startswith("query_location")}
    return [_bare(value) for value in node] if isinstance(node, list) else node


def _arguments(node: Node) -> list[Node]:
    # Before DuckDB 2.0 a function's arguments were its children.
    return node["children"] if "children" in node else [argument["expression"] for argument in node["arguments"]]


def _cast_type(node: Node) -> str:
    return str(node["type_expr"]["type_name"] if "type_expr" in node else node["cast_type"]["id"])


def _constant(node: Node) -> Value:
    if "value" in node:  # before DuckDB 2.0
        value, kind = node["value"], node["value"]["type"]
        if value["is_null"]:
            return None
        if kind["id"] == "DECIMAL":
            return float(f"{value['value']}e-{kind['type_info']['scale']}")
        if kind["id"] not in ("INTEGER", "BIGINT", "DOUBLE", "VARCHAR", "BOOLEAN"):
            raise _Beyond
        found: Value = value["value"]
        return found
    literal = node["literal"]
    match literal["kind"]:
        case "NULL_LITERAL":
            return None
        case "INTEGER":
            return int(literal["text"])
        case "NUMERIC":
            return float(literal["text"])
        case "STRING":
            return str(literal["text"])
    raise _Beyond


# ------------------------------------------------------------------------------------------------------------ arithmetic


def _divided(a: float, b: float) -> float:
    if b:
        return a / b
    return math.nan if not a or a != a else math.copysign(math.inf, a) * math.copysign(1.0, b)


def _guarded(function: Callable[[float], float], outside: Callable[[float], float]) -> Callable[[float], float]:
    """A function of the C library that gives infinity or NaN, as the engine does, where Python raises."""

    def guarded(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError):
            return outside(x)

    return guarded


def _power(a: float, b: float) -> float:
    try:
        return math.pow(a, b)
    except OverflowError:
        return math.inf if a > 0 or b % 2 == 0 else -math.inf
    except ValueError:  # zero to a negative power, or a root of a negative number
        return math.nan if a else math.inf if b % 2 != 1 else math.copysign(math.inf, a)


def _rounded(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda x: float(function(x)) if math.isfinite(x) else x


def _coalesce(*values: Value) -> Value:
    return next((value for value in values if value is not None), None)


def _least(*values: Any) -> Value:
    known = [value for value in values if value is not None]
    return min(known, key=_ordered) if known else None


def _ordered(value: Any) -> Any:
    return (1, 0.0) if value != value else (0, value)  # NaN equals itself and is the largest number


def _and(*values: Value) -> Value:
    if any(value is False for value in values):
        return False
    return None if None in values else True


def _or(*values: Value) -> Value:
    if any(value is True for value in values):
        return True
    return None if None in values else False


def _logarithm(x: float) -> float:
    return -math.inf if x == 0 else math.nan


_FUNCTIONS: dict[str, Any] = {
    "_divided": _divided,
    "_exp": _guarded(math.exp, lambda _: math.inf),
    "_ln": _guarded(math.log, _logarithm),
    "_log10": _guarded(math.log10, _logarithm),
    "_sqrt": _guarded(math.sqrt, lambda _: math.nan),
    "_sin": _guarded(math.sin, lambda _: math.nan),
    "_cos": _guarded(math.cos, lambda _: math.nan),
    "_power": _power,
    "_floor": _rounded(math.floor),
    "_ceil": _rounded(math.ceil),
    "_coalesce": _coalesce,
    "_least": _least,
    "_ordered": _ordered,
    "_and": _and,
    "_or": _or,
}
_ARITHMETIC: dict[str, dict[int, str]] = {
    "+": {2: "{0} + {1}"},
    "-": {1: "-{0}", 2: "{0} - {1}"},
    "*": {2: "{0} * {1}"},
    "/": {2: "_divided({0}, {1})"},
    "abs": {1: "abs({0})"},
    "pi": {0: repr(math.pi)},
    "nullif": {2: "None if {0} is None or ({1} is not None and _ordered({0}) == _ordered({1})) else {0}"},
    "least": {count: f"_least({', '.join(f'{{{i}}}' for i in range(count))})" for count in range(2, 9)},
    **{name: {1: f"_{name}({{0}})"} for name in ("exp", "ln", "log10", "sqrt", "sin", "cos", "floor", "ceil")},
    "pow": {2: "_power({0}, {1})"},
}
"""Functions by the number of their arguments; all but those of ``_OF_NULLS`` are NULL where an argument is."""
_OF_NULLS = ("nullif", "least")
_COMPARISONS = {
    "COMPARE_EQUAL": "_ordered({0}) == _ordered({1})",
    "COMPARE_NOTEQUAL": "_ordered({0}) != _ordered({1})",
    "COMPARE_LESSTHAN": "_ordered({0}) < _ordered({1})",
    "COMPARE_GREATERTHAN": "_ordered({0}) > _ordered({1})",
    "COMPARE_LESSTHANOREQUALTO": "_ordered({0}) <= _ordered({1})",
    "COMPARE_GREATERTHANOREQUALTO": "_ordered({0}) >= _ordered({1})",
}
_NULL_TESTS = {
    "OPERATOR_IS_NULL": "{0} is None",
    "OPERATOR_IS_NOT_NULL": "{0} is not None",
    "OPERATOR_NOT": "None if {0} is None else not {0}",
}
_TRUTHS = (*_COMPARISONS, *_NULL_TESTS, "COMPARE_BETWEEN", "CONJUNCTION_AND", "CONJUNCTION_OR")
"""Nodes that are true, false or NULL."""
