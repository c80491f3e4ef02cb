"""The JSON Schema of a budget file, made from the tables that the reader checks against.

Editors complete and check budgets with it: the files that ship name it in a `yaml-language-server` comment.
"""

from __future__ import annotations

from typing import Any

from pytest_quantbudget.budget import changes, keys
from pytest_quantbudget.core import limits
from pytest_quantbudget.core.changes import MAX_CHANGE
from pytest_quantbudget.core.fields import mapping_schema
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.models import methods

TASK = "[a-z][a-z0-9_]*"


def budget_schema() -> dict[str, Any]:
    """The schema. Limits on tasks are matched by pattern: which tasks a file declares, a schema cannot know."""
    kinds = methods.names()
    of_methods = {name: {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]} for name in kinds}
    of_others = {
        "$ref": "#/$defs/method",
        "anyOf": [{"required": [name]} for name in ("kind", "engine", "checkpoint")],
        "allOf": [
            {"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]}, "then": {"$ref": f"#/$defs/{name}"}}
            for name in kinds
        ],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantbudget budget",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["model", "methods"]}, {"required": ["extends"]}],
        "properties": {
            **{field.name: field.schema for field in keys.FILE},
            "methods": {
                "type": "object",
                "propertyNames": {"pattern": f"^{keys.METHOD_NAME}$"},
                "minProperties": 1,
                "properties": of_methods,
                "additionalProperties": of_others,
            },
        },
        "patternProperties": {f"^{keys.FOR_ANCHORS}": {"description": "Not read: a place for anchors."}},
        "$defs": {
            "limits": _limits(),
            "method": mapping_schema(keys.METHOD),
            **{name: _method(name) for name in kinds},
        },
    }


def _method(name: str) -> dict[str, Any]:
    spec = methods.spec(name)
    own: dict[str, Any] = {"options": mapping_schema(spec.options)}
    if spec.checkpoint_format is None:
        own["checkpoint"] = False
    return {"description": spec.summary, "$ref": "#/$defs/method", "properties": own}


def _limits() -> dict[str, Any]:
    of_tasks = metrics.task_limits("TASK")
    # `min_speedup` is the accuracy of no task, and neither is `min_math_recovery` beside a task `math`.
    longer = [kind.name.replace("TASK", ".*") for kind in of_tasks if kind.name.startswith("min_TASK_")]
    others = f"(?!({'|'.join(metrics.limits())})$)"
    names = {kind.name: others + (f"(?!({'|'.join(longer)})$)" if kind.name == "min_TASK" else "") for kind in of_tasks}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            **{kind.name: _limit(kind) for kind in metrics.limits().values()},
            MAX_CHANGE: changes.schema(),
        },
        "patternProperties": {
            **{
                f"^{metric.pattern}$": _limit(metric.limits[0], metric.doc)
                for metric in metrics.known()
                if metric.pattern
            },
            **{f"^{names[kind.name]}{kind.name.replace('TASK', TASK)}$": _limit(kind) for kind in of_tasks},
        },
    }


def _limit(kind: LimitKind, doc: str = "") -> dict[str, Any]:
    auto = {"const": limits.AUTO}
    numeric = metrics.metric_of(kind).numeric
    value = {"anyOf": [dict(kind.kind.schema), auto]} if numeric else {**kind.kind.schema, "not": auto}
    by_gpu = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": value,
        "description": "By GPU name; `*` and `?` are allowed, and a `*` behind a digit ends the word.",
    }
    return {"description": doc or kind.doc, "anyOf": [value, by_gpu, {"type": "null"}]}
