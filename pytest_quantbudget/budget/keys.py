"""The keys of a budget file: the reader checks files against these tables, and the JSON Schema is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core import limits
from pytest_quantbudget.core.budget import USES
from pytest_quantbudget.core.fields import (
    CAPABILITY,
    FLAG,
    FLAG_OR_AUTO,
    NAMES,
    SIZE,
    TEXT,
    TIME,
    WHOLE_OR_AUTO,
    Field,
    Kind,
    choice,
    command,
    mapping_schema,
    nested,
    number,
    several,
    some_of,
    whole,
)
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.core.request import DUMMY, REAL, SAME_AS_SOURCE
from pytest_quantbudget.judge.metrics import reference
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.tasks.sets import styles


@dataclass(frozen=True)
class Growth:
    """Questions that are asked step by step: `start` first, and at most `max` (None: all that there are)."""

    start: int
    max: int | None = None


def _read_questions(value: object) -> int | Growth:
    if not isinstance(value, dict):
        return int(whole(1).read(value))
    unknown = [key for key in value if key not in ("start", "max")]
    if unknown:
        raise ValueError(f"has no key {unknown[0]!r}{nearest(str(unknown[0]), ('start', 'max'))}")
    if "start" not in value:
        raise ValueError("needs a `start`, the number of questions after which the answers are first looked at")
    start = int(whole(10).read(value["start"]))
    most = None if value.get("max") is None else int(whole(1).read(value["max"]))
    if most is not None and most <= start:
        raise ValueError(f"max {most} must be larger than start {start}")
    return Growth(start, most)


ALLOW = "allow"
TIMEOUT_S = 2 * 3600.0  # for one method, where the file gives none
DEFAULT_PROMPT = "The three primary colours are"
WORKLOAD: Sequence[Field] = (
    Field("prompt_tokens", whole(1), "Tokens of each prompt in the prefill.", 512),
    Field("new_tokens", whole(2), "Tokens generated after each prompt; the first belongs to the prefill.", 128),
    Field("batch_size", whole(1), "Sequences at once.", 1),
    Field("repeats", whole(1), "Measured runs, after unmeasured warm-ups; the median is judged.", 5),
    Field("compile", FLAG, "Decode by compiled steps on a static cache: on a GPU, CUDA graphs.", False),
    Field(
        "prompt",
        TEXT,
        "A text whose greedy continuation the report shows, to see that the model talks.",
        DEFAULT_PROMPT,
    ),
)
QUESTIONS_KIND = Kind(
    _read_questions,
    {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["start"],
                "properties": {
                    "start": {"type": "integer", "minimum": 10},
                    "max": {"type": ["integer", "null"], "minimum": 1},
                },
            },
        ]
    },
)


# How limits are judged: a task overrides its method, and a method the file.
JUDGING: Sequence[Field] = (
    Field(
        "undecided",
        choice(limits.ESTIMATE, limits.FAIL, limits.PASS),
        "What decides where the confidence bounds lie on both sides of a limit: the estimate, or neither.",
    ),
    Field("confidence", number(0.5, 1), "Confidence of each bound, one-sided; 0.95 where nothing is said."),
    Field(
        "expected_flips",
        number(0, 100, closed="high"),
        "Percent of questions whose outcome a method is expected to change: what so many questions can tell.",
    ),
)
QUESTIONS = Field("questions", whole(1), "How many questions, drawn at random by `seed`; all of them where not given.")
GROWING = Field(
    "questions",
    QUESTIONS_KIND,
    "How many questions, drawn at random by `seed`; `{start, max}`: only as many as decide.",
)
SEED = Field("seed", whole(0), "Seed of the drawing of questions and examples.", 0)
CHAT: Sequence[Field] = (
    Field("chat_template", FLAG_OR_AUTO, "Ask through the model's chat template; `auto` where it has one.", False),
    Field("system_prompt", TEXT, "The conversation's system message."),
    Field("enable_thinking", FLAG, "Given to the chat template, for models that can think first."),
)
TASK: Sequence[Field] = (
    GROWING,
    Field("shots", whole(0), "Worked examples in front of each question; the harness's number where it chooses them."),
    SEED,
    Field(
        "file", TEXT, "JSON lines with `question` and `answer`, instead of the hub's set; `builtin` is the shipped one."
    ),
    Field("style", choice(*styles()), "Whose prompts, stops and extraction; the task's own name by default."),
    Field("shots_file", TEXT, "JSON lines that worked examples are drawn from, instead of the task's own questions."),
    Field(
        "fewshot",
        choice("harness", "fixed"),
        "Worked examples as lm-evaluation-harness chooses them (default where it can), or the same for all questions.",
    ),
    *CHAT,
    Field("max_new_tokens", whole(1), "Where an answer is cut off.", 256),
    Field(
        "max_truncated", number(0, 100, closed="low high"), "Percent of cut-off answers above which none count.", 2.0
    ),
    Field("batch_size", WHOLE_OR_AUTO, "Questions at once; `auto` goes by memory. Halved when memory runs out."),
    Field("extract", choice("strict", "flexible"), "Which answer counts: after `####`, or the last number.", "strict"),
    Field("cluster", TEXT, "Key of the file's lines: questions with the same value are alike, and count as fewer."),
    Field("divergence", FLAG, "Compare full logits with the baseline's on a sample of its answers (KL, top-1).", False),
)
HARNESS: Sequence[Field] = (
    Field("harness", TEXT, "A task of lm-evaluation-harness, by name, or by the path of a YAML file."),
    Field("limit", whole(1), "Only the first so many questions, as the harness's own `--limit`."),
    QUESTIONS,
    SEED,
    Field("shots", whole(0), "Worked examples; the task's own number where not given."),
    Field("metric", TEXT, "The figure that counts, right or wrong a question; by default the task's first such one."),
    *CHAT,
    Field("batch_size", whole(1), "Requests at once.", 16),
)
PERPLEXITY: Sequence[Field] = (
    Field("file", TEXT, "A text file, read whole."),
    Field("window", whole(2), "Tokens that the model sees at once.", 512),
    Field("stride", whole(1), "Tokens by which the window moves: so many are scored in each, but for the first.", 256),
)
MAX_LEVELS = 20
LOAD: Sequence[Field] = (
    Field("prompt_tokens", whole(1), "Tokens of each prompt; no two prompts are the same.", 512),
    Field("new_tokens", whole(2), "Tokens of each answer, whatever they are: end tokens are ignored.", 128),
    Field(
        "concurrency",
        several(whole(1, 100_000), MAX_LEVELS),
        "Requests open at any time: one level, or a list of levels; 1 where there is no `rate`.",
    ),
    Field(
        "rate",
        several(number(0, 1e6), MAX_LEVELS),
        "Requests sent a second, at random times (Poisson), however many are open: one level, or a list of levels.",
    ),
    Field("requests", whole(1, 1_000_000), "Requests of each level that count.", 200),
    Field(
        "warmup", whole(0, 1_000_000), "Requests before each level that do not count; by default one for each open one."
    ),
    Field("seed", whole(0), "Seed of the prompts, and of the times at which a `rate` sends them.", 0),
    Field("timeout", TIME, "Time for one request, after which it has failed.", 120.0),
    Field("file", TEXT, "A text file that prompts are cut from, instead of random tokens."),
    Field("tool", choice("guidellm"), "Another program that sends the requests, in an interpreter of that name."),
)
GPU: Sequence[Field] = (
    Field("min_vram", SIZE, "Memory that the GPU must have, and have free."),
    Field("min_capability", CAPABILITY, "Smallest CUDA compute capability, quoted."),
    Field("count", whole(1), "How many GPUs must be visible.", 1),
)
GPU_NEED = nested({"anyOf": [{"type": "boolean"}, mapping_schema(GPU)]})
GPUS = Field("gpus", whole(1), "How many GPUs the model is spread over.", 1)
TASKS_SCHEMA = {
    "type": "object",
    "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
    "additionalProperties": {
        "anyOf": [
            mapping_schema((*TASK, *JUDGING)),
            {**mapping_schema((*HARNESS, *JUDGING)), "required": ["harness"]},
            {"type": "null"},
        ]
    },
}
SAME = Field(
    "same_as_source", some_of(*SAME_AS_SOURCE), "What a ready checkpoint must have in common with `model`, or fail."
)
BASELINE: Sequence[Field] = (
    Field("report", TEXT, "A report that an earlier run wrote (--quant-report)."),
    Field("method", TEXT, "The method in it; by default its only one, or what its methods were compared with."),
    Field("budget", TEXT, "The budget file in it, where it holds several."),
)
REFERENCE = Field(
    "reference",
    nested(
        {
            "type": "object",
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "pattern": f"^{reference.TEXT}$", "examples": [reference.EXAMPLE]},
                    {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["score", "within"],
                        "properties": {
                            "score": dict(reference.SCORE.schema),
                            "within": dict(reference.WITHIN_POINTS.schema),
                        },
                    },
                ]
            },
        }
    ),
    "Published scores by task, of the baseline, or of the method that it stands in.",
)
FOR_ANCHORS = "x-"  # top-level keys that begin so are not read, as in Compose files
FILE: Sequence[Field] = (
    Field("model", TEXT, "Hub id, directory, or `builtin`."),
    Field("revision", TEXT, "Commit, branch or tag of a hub model."),
    Field("extends", TEXT, "Another budget file, whose entries hold where this one is silent."),
    Field(
        "baseline",
        nested({"anyOf": [dict(TEXT.schema), {**mapping_schema(BASELINE), "required": ["report"]}]}),
        "The method that ratios, speed-ups and drops are against: of this file, or of the report of an earlier run.",
    ),
    REFERENCE,
    Field("use", several(choice(*USES), len(USES)), "What a method is wanted for: one must meet all its limits."),
    Field("workload", nested(mapping_schema(WORKLOAD)), "What memory and speed are measured on."),
    SAME,
    Field("calibration", TEXT, "Texts for methods that quantize the model themselves; `builtin` is shipped."),
    Field("gpu", GPU_NEED, "What the tests need of the machine; without it they are skipped."),
    GPUS,
    Field(
        "load_format",
        choice(REAL, DUMMY),
        "`dummy` builds the models from config.json alone, with random weights: limits on quality are skipped.",
        REAL,
    ),
    Field("timeout", TIME, "Time for one method, quantizing and loading included."),
    Field("max_age", TIME, "How old a stored timing may be to be used again."),
    *JUDGING,
    Field("tasks", nested(TASKS_SCHEMA), ""),
    Field("perplexity", nested(mapping_schema(PERPLEXITY)), "A text whose perplexity is measured."),
    Field("load", nested(mapping_schema(LOAD)), "Requests that are sent to methods whose engine is a server."),
    Field("methods", nested({"type": "object"}), ""),
)
METHOD_NAME = r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,59}"
SERVER: Sequence[Field] = (
    Field(
        "url", TEXT, "Of a server that runs, such as http://127.0.0.1:8000/v1; this machine's unless more is allowed."
    ),
    Field(
        "command", command(), "What starts the server, word by word; `{port}`, `{model}` and `{python}` are filled in."
    ),
    Field("port", whole(1, 65535), "The port that `command` listens on, where it must be a certain one."),
    Field("model", TEXT, "The name under which the server serves the model; its only one where not given."),
    Field("api_key_env", TEXT, "The environment variable that holds the server's key."),
    Field("start_timeout", TIME, "How long it may take until the server answers.", 600.0),
)
METHOD: Sequence[Field] = (
    Field("checkpoint", TEXT, "A ready checkpoint: hub id or directory."),
    Field("options", nested({"type": "object"}), ""),
    Field("budget", nested({"$ref": "#/$defs/limits"}), ""),
    REFERENCE,
    Field("marks", NAMES, "pytest markers for the tests of this method."),
    Field("gpu", GPU_NEED, ""),
    GPUS,
    Field("timeout", TIME, "Time for this method, instead of the file's."),
    Field("kind", choice(*methods.names()), "What the method is, where its name is one of your own."),
    Field("engine", choice(*engines.names()), "What runs it; transformers where nothing is said and it can."),
    Field("engine_options", nested({"type": "object"}), "Options of the engine, by the engine's own names."),
    Field("python", TEXT, "Another interpreter that measures it, one of the ini file's `quant_interpreters`."),
    Field("server", nested(mapping_schema(SERVER)), "The server that the engine `openai` measures."),
    Field("load", nested(mapping_schema(LOAD)), "Requests that are sent to it; its keys hold instead of the file's."),
    Field("adapter", TEXT, "A LoRA adapter as PEFT saves it: hub id or directory."),
    Field(
        "merge",
        FLAG,
        "Merge the adapter into the weights, before these are quantized, instead of running it beside them.",
        False,
    ),
    Field(
        "decompressed",
        choice(ALLOW),
        "`allow` judges memory and speed also where the engine runs the checkpoint's weights written out.",
    ),
    SAME,
    *JUDGING,
)


def read_fields(node: Marked | None, fields: Sequence[Field], what: str, problems: Problems) -> dict[str, Any]:
    """The values of a mapping's keys, with defaults for those that are missing; mistakes are added to `problems`."""
    values = {field.name: field.default for field in fields}
    if node is None:
        return values
    kinds = {field.name: field.kind for field in fields}
    if not isinstance(node.value, dict):
        problems.add(node, f"{what} takes keys ({', '.join(kinds)}), not {node.plain!r}")
        return values
    for key, value in node.value.items():
        kind = kinds.get(key)
        if kind is None:
            problems.add(value, f"{what} has no key {key!r}{nearest(key, kinds)}")
        elif kind.nested:
            values[key] = value
        else:
            try:
                values[key] = kind.read(value.plain)
            except ValueError as error:
                problems.add(value, f"{key}: {error}")
    return values


def judging(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that say how limits are judged."""
    return {field.name: values[field.name] for field in JUDGING}
