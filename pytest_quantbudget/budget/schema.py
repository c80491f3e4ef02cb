"""The JSON Schema of a budget file, generated from the tables that the parser checks against.

Editors complete and check budgets with it: the files that ship name it in a `yaml-language-server` comment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core import fields, limits
from pytest_quantbudget.core.fields import Field
from pytest_quantbudget.core.limits import LimitKind
from pytest_quantbudget.judge import metrics
from pytest_quantbudget.models import methods


def budget_schema() -> dict[str, Any]:
    """The schema. Limits on tasks are matched by pattern: which tasks a file declares, a schema cannot know."""
    text = dict(fields.TEXT.schema)
    gpu = {"anyOf": [{"type": "boolean"}, _fields(keys.GPU)]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pytest-quantbudget budget",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["model", "methods"]}, {"required": ["extends"]}],
        "properties": {
            "model": _said(text, "Hub id, directory, or `builtin`."),
            "revision": _said(text, "Commit, branch or tag of a hub model."),
            "extends": _said(text, "Another budget file, whose entries hold where this one is silent."),
            "baseline": _said(
                {"enum": list(methods.MODULES)}, "The method that ratios, speed-ups and drops are against."
            ),
            "workload": _said(_fields(keys.WORKLOAD), "What memory and speed are measured on."),
            "calibration": _said(text, "Texts for methods that quantize the model themselves; `builtin` is shipped."),
            "gpu": _said(gpu, "What the tests need of the machine; without it they are skipped."),
            "gpus": _field(keys.SPREAD[0]),
            "load_format": _field(keys.LOAD_FORMAT),
            "timeout": _said(fields.TIME.schema, "Time for one method, quantizing and loading included."),
            "max_age": _said(fields.TIME.schema, "How old a stored timing may be to be used again."),
            **_judging(),
            "tasks": {
                "type": "object",
                "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
                "additionalProperties": {
                    "anyOf": [
                        _fields((*keys.TASK, *keys.JUDGING)),
                        {**_fields((*keys.HARNESS, *keys.JUDGING)), "required": ["harness"]},
                        {"type": "null"},
                    ]
                },
            },
            "perplexity": _said(_fields(keys.PERPLEXITY), "A text whose perplexity is measured."),
            "methods": {
                "type": "object",
                "additionalProperties": False,
                "properties": {name: _optional(_method(name, gpu)) for name in methods.MODULES},
            },
        },
        "$defs": {"limits": _limits()},
    }


def _said(schema: Mapping[str, Any], doc: str) -> dict[str, Any]:
    return {"description": doc, **schema}


def _optional(schema: dict[str, Any]) -> dict[str, Any]:
    """`null` takes an inherited entry out."""
    return {"anyOf": [schema, {"type": "null"}]}


def _fields(listed: Iterable[Field]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {f.name: _field(f) for f in listed}}


def _field(field: Field) -> dict[str, Any]:
    default = {} if field.default is None else {"default": field.default}
    return _said(field.kind.schema, field.doc) | default


def _judging() -> dict[str, Any]:
    return {field.name: _field(field) for field in keys.JUDGING}


def _method(name: str, gpu: dict[str, Any]) -> dict[str, Any]:
    spec = methods.spec(name)
    properties: dict[str, Any] = {
        "options": _fields(spec.options),
        "budget": {"$ref": "#/$defs/limits"},
        "marks": _said(fields.NAMES.schema, "pytest markers for the tests of this method."),
        "gpu": gpu,
        "gpus": _field(keys.SPREAD[0]),
        "timeout": _said(fields.TIME.schema, "Time for this method, instead of the file's."),
        **_judging(),
    }
    if spec.checkpoint_format is not None:
        properties["checkpoint"] = _said(fields.TEXT.schema, "A ready checkpoint: hub id or directory.")
    return {"description": spec.summary, "type": "object", "additionalProperties": False, "properties": properties}


def _limits() -> dict[str, Any]:
    of_tasks = metrics.task_limits("TASK")
    others = f"(?!({'|'.join(metrics.limits())})$)"  # `min_speedup` is the accuracy of no task
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {kind.name: _limit(kind) for kind in metrics.limits().values()},
        "patternProperties": {
            f"^{others}{kind.name.replace('TASK', '[a-z][a-z0-9_]*')}$": _limit(kind) for kind in of_tasks
        },
    }


def _limit(kind: LimitKind) -> dict[str, Any]:
    value = {"anyOf": [dict(kind.kind.schema), {"const": limits.AUTO}]}
    by_gpu = {"type": "object", "additionalProperties": value, "description": "By GPU name, * and ? allowed."}
    return _said({"anyOf": [value, by_gpu, {"type": "null"}]}, kind.doc)
