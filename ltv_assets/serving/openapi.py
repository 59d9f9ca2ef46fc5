"""What the routes say of themselves: OpenAPI with examples, made from the contract.

What belongs here: descriptions. What does not: behaviour (``app.py``).
"""

from __future__ import annotations

from typing import Any

from ltv_assets.core.asset_specs import relations
from ltv_assets.core.contract import Contract
from ltv_assets.features.impressions import HOUR_COLUMN, example_impression
from ltv_assets.features.statistics import Kind, kind_of

DESCRIPTION = """Scores impressions with the champion, at bid time.

Numbers are those of the batch. A malformed impression gets nulls and a sentence in `error`; those beside it are scored.
"""

_ANY_MAP = {"description": "an object, a list of pairs, a list of {key, value}, or the JSON text of any of these"}
_SCHEMAS: dict[Kind, dict[str, Any]] = {
    "number": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]},
    "timestamp": {"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}], "description": "unix seconds or ISO 8601 text"},
    "text": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "list": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}, {"type": "null"}]},
}
_OUTPUT_TYPES = {"DOUBLE": "number", "BOOLEAN": "boolean", "VARCHAR": "string"}


def routes(contract: Contract) -> dict[str, dict[str, Any]]:
    """Keyword arguments of each route by its name."""
    example = example_impression(contract)
    answer = _answer(contract)
    forms = {
        "one impression": {"value": example},
        "a list": {"value": [example, example]},
        "as for MLflow": {"value": {"dataframe_records": [example]}},
    }
    impression = _impression(contract)
    body = {"content": {"application/json": {"schema": {"anyOf": [impression, {"type": "array", "items": impression}]}, "examples": forms}}}
    given = {"application/json": {"schema": {"anyOf": [answer, {"type": "array", "items": answer}]}}}
    return {
        "score": {
            "summary": "Score one impression, or a list",
            "openapi_extra": {"requestBody": {"required": True, **body}},
            "responses": {
                200: {"description": "an object for one impression, a list for a list", "content": given},
                **_errors({400: "not a request", 401: "token", 408: "the body came too slowly", 413: "too large", 429: "too busy"}),
                **_errors({503: "no model", 504: "time-out"}),
            },
        },
        "healthz": {"summary": "Whether the process answers"},
        "readyz": {"summary": "Whether there is a model to answer with", "responses": _errors({503: "no model"})},
        "model": {"summary": "The model in use", "responses": _errors({503: "no model"})},
        "metrics": {"summary": "Counts for Prometheus"},
    }


def _impression(contract: Contract) -> dict[str, Any]:
    columns = {c.name: {**_SCHEMAS.get(kind_of(c), _ANY_MAP), "title": c.description} for c in contract.inputs}
    keys = {contract.identifier: {"title": "given back as it came"}, HOUR_COLUMN: {"type": "string", "title": "hour of the impression"}}
    return {"type": "object", "properties": {**keys, **columns}}


def _answer(contract: Contract) -> dict[str, Any]:
    scored = {
        c.name: {"anyOf": [{"type": _OUTPUT_TYPES[c.type]}, {"type": "null"}], "title": c.description}
        for c in relations(contract)["predictions"]
        if c.name != "day"
    }
    text = {"type": "string"}
    more = {
        "error": {"anyOf": [text, {"type": "null"}], "title": "why the impression could not be scored"},
        "window": {**text, "title": "window of the model"},
        "fingerprint": {**text, "title": "content hash of the model"},
    }
    return {"type": "object", "properties": {**scored, **more}}


def _errors(meanings: dict[int, str]) -> dict[int, dict[str, Any]]:
    kind = {"type": "object", "properties": {"kind": {"type": "string"}, "message": {"type": "string"}}}
    content = {"application/json": {"schema": {"type": "object", "properties": {"error": kind}}}}
    return {status: {"description": meaning, "content": content} for status, meaning in meanings.items()}
