"""Tasks of lm-evaluation-harness 0.4, run by the library itself, with every question's outcome kept."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import logging
import math
import os
import random
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import lm_eval.tasks
import lm_eval.utils
from jinja2.sandbox import SandboxedEnvironment

from pytest_quantbudget.core import problems
from pytest_quantbudget.core.answers import Answer, TaskResult
from pytest_quantbudget.core.request import NO_TRUST, Task, Trust
from pytest_quantbudget.engine import out_of_memory
from pytest_quantbudget.engine.base import Engine, NotFinite, NotOffered
from pytest_quantbudget.engine.harness_model import EngineModel
from pytest_quantbudget.engine.out_of_memory import Batching
from pytest_quantbudget.tasks import harness_file
from pytest_quantbudget.tasks.prompts import uses_chat_template

BATCH = 16  # requests at once where the budget is silent
PREFERRED = ("exact_match", "acc")  # of several figures that are right or wrong a question
ALLOW = "--quant-trust-remote-code allows it"
Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # outcomes by task, as `simple_evaluate` logs them


def run(
    engine: Engine, task: Task, batching: Batching, trust: Trust = NO_TRUST, source: str | None = None
) -> TaskResult:
    """The answers of a loaded model to a task of the library.

    `source` is the earlier state of its files (`harness_file.state`); `batching` is about requests.
    Raises ValueError for a task that does not exist, cannot be read, runs code that `trust` does not allow, or
    has no figure that is right or wrong a question; NotFinite where the model's logits break down; NotOffered.
    """
    began = time.perf_counter()
    tasks = _load(task, trust, source)
    evaluated = _evaluate(engine, task, tasks, trust, batching)
    metric, filtering = _choose(task, evaluated)
    answers: list[Answer] = []
    before = 0
    for name, each in tasks.items():
        samples = [s for s in evaluated["samples"].get(name, ()) if s["filter"] == filtering]
        with _withholding(task):
            answers += [_answer(each, sample, metric, before) for sample in samples]
        before += len(each.eval_docs)
    with _withholding(task):
        chance = _chance(tasks, evaluated)
    took = time.perf_counter() - began
    return TaskResult(task, tuple(answers), took, metric=f"{metric},{filtering}", chance=chance)


def _chance(tasks: Mapping[str, Any], evaluated: Mapping[str, Any]) -> float | None:
    """The percent that guessing gets right, where every question is multiple choice."""
    if any(each.OUTPUT_TYPE != "multiple_choice" for each in tasks.values()):
        return None
    options = [
        len(each.doc_to_choice(sample["doc"]))
        for name, each in tasks.items()
        if hasattr(each, "doc_to_choice")
        for sample in evaluated["samples"].get(name, ())
    ]
    return 100 * sum(1 / count for count in options) / len(options) if options and all(options) else None


def _evaluate(
    engine: Engine, task: Task, tasks: Mapping[str, Any], trust: Trust, batching: Batching
) -> Mapping[str, Any]:
    """What `simple_evaluate` returns."""
    chats = uses_chat_template(engine.tokenizer, task)
    drawn = _drawn(task, tasks)
    batching.size = batching.size or BATCH

    def evaluate() -> Mapping[str, Any]:
        own = batching.size if task.batch_size or batching.tried else 0
        model = engine.harness_model(task, batching.size) or EngineModel(engine, task, own)
        evaluated: Mapping[str, Any] = lm_eval.simple_evaluate(
            model,
            tasks=[each for name, each in tasks.items() if drawn is None or drawn[name]],
            num_fewshot=task.shots,
            limit=task.limit,
            samples=drawn,
            system_instruction=task.system_prompt,
            apply_chat_template=chats,
            fewshot_as_multiturn=chats,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=trust.remote_code,
        )
        model.check_logits(task.phase)
        return evaluated

    while True:
        with _withholding(task):
            evaluated = batching.attempt(evaluate, lambda: batching.size)
        if evaluated is not None:
            return evaluated


def _drawn(task: Task, tasks: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """Which questions of each subtask are asked, drawn by the seed from all of them; None for all, or the first."""
    if task.questions is None:
        return None
    pool = [(name, i) for name, each in tasks.items() for i in range(len(each.eval_docs))]
    if task.questions > len(pool):
        raise ValueError(f"{task.questions:,} questions were asked of {task.harness}, which has {len(pool):,}")
    drawn = random.Random(task.seed).sample(pool, task.questions)
    # In order: the library numbers the questions that it takes by their place in this list.
    return {name: sorted(i for other, i in drawn if other == name) for name in tasks}


def _load(task: Task, trust: Trust, source: str | None) -> dict[str, Any]:
    """The library's tasks by name: one, or those of a group or tag."""
    name = str(task.harness)
    if harness_file.is_file(name):
        path = Path(name)
        if source is not None and not source.endswith(f" {harness_file.state(path)}"):
            raise ValueError(f"{path.name} or a file that it names was changed while the run was going on")
        described = harness_file.described(path)
        _refuse(path, described, trust)
        if not trust.remote_code:
            _sandbox()
        manager, spec, folder = lm_eval.tasks.TaskManager(include_defaults=False), name, path.parent
    else:
        manager, spec, folder = _named(name)
        described = harness_file.described(Path(spec)) if harness_file.is_file(spec) else harness_file.Described()
    try:
        with _inside(folder):  # what a task file names is relative to it
            tasks: dict[str, Any] = manager.load([spec])["tasks"]
    except ModuleNotFoundError:
        raise
    except Exception as error:
        of_data = isinstance(error, OSError) and "module script" not in str(error)  # of the library `evaluate`
        if not of_data and "find cache for" not in str(error):
            raise _withheld(task, error) from None
        named = f" {', '.join(described.datasets)}" if described.datasets else ""
        raise ValueError(f"the data set{named} of {name} cannot be had: {_first_line(error)}") from error
    for each in tasks.values():
        if getattr(each, "UNSAFE_CODE", False) and not trust.remote_code:
            raise ValueError(f"{name} runs code that the model writes; {ALLOW}")
        if task.shots and each.get_config("num_fewshot") == 0:
            raise ValueError(f"{each.task_name} takes no worked examples (`num_fewshot: 0`), and shots asks for some")
    return tasks


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder for a while."""
    # contextlib.chdir is newer than the oldest Python that may run a measuring process.
    before = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _withholding(task: Task) -> Iterator[None]:
    """Let no error of a task's templates and filters say what it may quote."""
    try:
        yield
    except (NotFinite, NotOffered, ModuleNotFoundError):
        raise
    except Exception as error:  # noqa: BLE001  # whatever a template or filter raises
        raise _withheld(task, error) from None


def _withheld(task: Task, error: Exception) -> Exception:
    """An error without what a template or a filter made of the data, which its words may quote.

    Of a lack of memory, and of the library's own tasks, it is the error itself.
    """
    if not task.is_harness_file or out_of_memory.is_out_of_memory(error):
        return error
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} in {Path(where.filename).name}, {where.name}"
    return ValueError(f"{Path(str(task.harness)).name}: {what}; its words are withheld, for they may quote the data")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _refuse(path: Path, described: harness_file.Described, trust: Trust) -> None:
    """Raise ValueError for a task file that does what is never allowed, or what `trust` does not allow."""
    if described.problems:
        raise ValueError(str(described.problems[0]).splitlines()[0])
    if trust.remote_code:
        return
    import lm_eval.api.metrics  # noqa: F401  # fills the registry
    from lm_eval.api.registry import metric_registry

    if described.code:
        raise ValueError(f"{path.name} runs code that comes with it ({described.code[0]}); {ALLOW}")
    for where, name in described.metrics:
        if name not in metric_registry:
            raise ValueError(f"{where}: the metric {name!r} is none of the harness's own, and would be code; {ALLOW}")


def _sandbox() -> None:
    """Fill the templates of task files, which can call any Python otherwise, as transformers fills chat templates."""
    plain = lm_eval.utils.env
    if isinstance(plain, SandboxedEnvironment):
        return
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)
    lm_eval.utils.env = sandbox


def _named(name: str) -> tuple[Any, str, Path]:
    """A task manager that knows a task of the library, what to load from it, and a folder to do it in.

    The library reads all of its 14,000 files to know its tasks, which takes 16 s; looking for one name takes 2 s.
    """
    root = Path(lm_eval.tasks.__file__).resolve().parent
    declares = re.compile(rf"^(?:task|group|tag):[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*$", re.MULTILINE)
    found = []
    for path in sorted(root.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if name in text and declares.search(text):
            found.append((path, text))
    if len(found) == 1 and not re.search(r"^group:|^task:[ \t]*$", found[0][1], re.MULTILINE):
        path, text = found[0]
        if not re.search(rf"^tag:[ \t]*[\"']?{re.escape(name)}[\"']?[ \t]*$", text, re.MULTILINE):
            return lm_eval.tasks.TaskManager(include_defaults=False), str(path), path.parent
    manager = lm_eval.tasks.TaskManager()
    if name not in manager.all_tasks:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        raise ValueError(f"lm-evaluation-harness has no task {name!r}{problems.nearest(name, close)}")
    return manager, name, root


def _choose(task: Task, evaluated: Mapping[str, Any]) -> tuple[str, str]:
    """The figure and the filter that count: those asked for, else the first that are right or wrong a question.

    Raises ValueError where there are none, naming what there is.
    """
    samples: Samples = evaluated["samples"]
    known: dict[tuple[str, str], bool] = {}
    for sample in itertools.chain(*samples.values()):
        for metric in sample["metrics"]:
            key = metric, sample["filter"]
            known[key] = known.get(key, True) and _is_binary(sample[metric])
    for key, binary in known.items():
        known[key] = binary and all(_is_mean(evaluated, name, *key) for name in samples)
    names = ", ".join(f"{metric},{filtering}" for metric, filtering in known)
    if task.metric is not None:
        wanted, _, filtering = task.metric.partition(",")
        found = [key for key in known if key[0] == wanted and filtering in ("", key[1])]
        if not found:
            raise ValueError(
                f"{task.harness} has no metric {task.metric!r}{problems.nearest(task.metric, names.split(', '))}"
            )
        if not known[found[0]]:
            raise ValueError(f"the metric {task.metric!r} of {task.harness} is not right or wrong a question ({names})")
        return found[0]
    fit = [key for key in known if known[key]]
    if not fit:
        raise ValueError(f"{task.harness} has no metric that is right or wrong a question, only {names}")
    return min(fit, key=lambda key: PREFERRED.index(key[0]) if key[0] in PREFERRED else len(PREFERRED))


def _is_binary(value: Any) -> bool:
    try:
        return not isinstance(value, str | tuple | list) and float(value) in (0.0, 1.0)
    except (TypeError, ValueError):
        return False


def _is_mean(evaluated: Mapping[str, Any], name: str, metric: str, filtering: str) -> bool:
    """Whether the library's own figure is the share of ones, and more of it is better."""
    samples = evaluated["samples"][name]
    values = [float(s[metric]) for s in samples if s["filter"] == filtering and metric in s["metrics"]]
    own = evaluated["results"][name].get(f"{metric},{filtering}")
    lower = evaluated["higher_is_better"].get(name, {}).get(metric) is False
    if not values or not isinstance(own, int | float) or lower:
        return False
    return len(values) == _asked(samples) and math.isclose(sum(values) / len(values), own, abs_tol=1e-9)


def _asked(samples: Sequence[Mapping[str, Any]]) -> int:
    return len({sample["doc_id"] for sample in samples})


def _answer(each: Any, sample: Mapping[str, Any], metric: str, before: int) -> Answer:
    """One question's outcome; `before` questions stand in the subtasks before this one."""
    if each.OUTPUT_TYPE in ("multiple_choice", "loglikelihood"):
        text, read = _chosen(each, sample)
    else:
        text, read = str(sample["resps"][0][0]), str(sample["filtered_resps"][0])
    right = float(sample[metric]) == 1.0
    prompt = hashlib.sha256(str(sample["arguments"][0][0]).encode()).hexdigest()[:16]
    return Answer(before + sample["doc_id"], text, read, read, right, right, False, 0, prompt=prompt)


def _chosen(each: Any, sample: Mapping[str, Any]) -> tuple[str, str]:
    """The likeliest option and its number, or whether the target was the likeliest text."""
    weights = [float(response[0][0]) for response in sample["resps"]]
    if any(math.isnan(weight) for weight in weights):
        raise NotFinite(f"logits became NaN or infinite while answering {each.task_name}")
    if each.OUTPUT_TYPE == "loglikelihood":
        greedy = str(bool(sample["resps"][0][0][1])).lower()
        return greedy, greedy
    options = each.doc_to_choice(sample["doc"]) if hasattr(each, "doc_to_choice") else []
    best = max(range(len(options) or len(weights)), key=weights.__getitem__)
    return str(options[best]) if options else str(best), str(best)


logging.getLogger("lm_eval").setLevel(logging.WARNING)
