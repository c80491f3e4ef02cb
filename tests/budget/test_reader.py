"""What a correct budget means: defaults, inheritance, paths, limits by GPU, and what has to be measured for them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantbudget.budget.keys import DEFAULT_PROMPT
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import GpuNeed
from pytest_quantbudget.core.problems import BudgetError
from pytest_quantbudget.core.request import Reply, Task, Workload
from pytest_quantbudget.judge.needs import Needs
from pytest_quantbudget.judge.needs import request as request_for

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file, with its folders, into an empty folder."""

    def write(text: str, name: str = "b.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def limits_of(budget: Budget, method: str) -> dict[str, tuple[float, str, str]]:
    """Value in base units, the user's text and unit, of each limit's first target."""
    limits = budget.method(method).limits
    return {limit.name: dataclasses.astuple(limit.targets[0])[1:] for limit in limits}


def test_where_the_file_is_silent_defaults_hold(write: Write) -> None:
    budget = load_budget(write("model: Qwen/Qwen3-8B\ntasks: {gsm8k: }\nmethods: {nf4: {}}\n"))
    assert (budget.model, budget.baseline, budget.prompt) == ("Qwen/Qwen3-8B", None, DEFAULT_PROMPT)
    assert budget.workload == Workload(prompt_tokens=512, new_tokens=128, batch_size=1, repeats=5)
    task, nf4 = budget.tasks["gsm8k"], budget.method("nf4")
    assert (task.questions, task.shots, task.seed, task.file, task.extract) == (None, 5, 0, None, "strict")
    assert (task.style, task.fewshot, task.chat_template, task.batch_size) == ("gsm8k", "harness", False, None)
    assert (nf4.limits, nf4.marks, nf4.gpu) == ((), (), None)
    assert (nf4.subject.checkpoint, nf4.subject.revision) == (None, None)
    assert nf4.subject.options == {"double_quant": True, "compute_dtype": "bfloat16"}


def test_limits_keep_value_text_unit_and_line(write: Write) -> None:
    text = """model: m
baseline: fp16
tasks: {gsm8k: {questions: 100}}
methods:
  fp16: {}
  nf4:
    budget:
      max_vram: 7 GiB
      max_weights: 7.5 GB
      max_ttft: 80 ms
      max_vram_ratio: 0.45
      min_tokens_per_s: 25
      min_speedup: 1
      min_gsm8k: 100
      max_gsm8k_drop: 0
      max_gsm8k_flips: 3.0
"""
    budget = load_budget(write(text))
    assert limits_of(budget, "nf4") == {
        "max_vram": (7 * 2**30, "7 GiB", "GiB"),
        "max_weights": (7.5e9, "7.5 GB", "GB"),
        "max_ttft": (0.08, "80 ms", "ms"),
        "max_vram_ratio": (0.45, "0.45", ""),
        "min_tokens_per_s": (25, "25", "tokens/s"),
        "min_speedup": (1, "1", "x"),
        "min_gsm8k": (100, "100", "%"),
        "max_gsm8k_drop": (0, "0", "points"),
        "max_gsm8k_flips": (3, "3.0", "%"),
    }
    assert [limit.line for limit in budget.method("nf4").limits] == list(range(8, 17))


def test_methods_come_in_the_order_of_the_file_with_their_lines(write: Write) -> None:
    budget = load_budget(write("model: m\nmethods:\n  nf4: {}\n  fp16: {marks: [slow]}\n  bf16: {}\n"))
    assert [(m.name, m.line, m.marks) for m in budget.methods] == [
        ("nf4", 3, ()),
        ("fp16", 4, ("slow",)),
        ("bf16", 5, ()),
    ]


def test_a_method_that_is_not_there_is_a_key_error(write: Write) -> None:
    with pytest.raises(KeyError, match="int8"):
        load_budget(write("model: m\nmethods: {nf4: {}}\n")).method("int8")


PARENT = """model: parent/model
revision: abc
calibration: texts.jsonl
methods:
  nf4: {budget: {max_vram: 7 GiB, max_load_time: 30 s}}
  awq-int4: {checkpoint: parent/awq, budget: {max_vram: 6 GiB}}
"""


def test_a_fine_tune_names_its_model_and_changes_a_limit(write: Write) -> None:
    write(PARENT, "parent/b.yaml")
    write('{"text": "calibrate"}\n' * 128, "parent/texts.jsonl")
    child = (
        "extends: parent/b.yaml\nmodel: own/model\nmethods: {nf4: {budget: {max_vram: 8 GiB, max_load_time: null}}}\n"
    )
    budget = load_budget(write(child))
    assert limits_of(budget, "nf4") == {"max_vram": (8 * 2**30, "8 GiB", "GiB")}
    assert limits_of(budget, "awq-int4") == {"max_vram": (6 * 2**30, "6 GiB", "GiB")}
    subject = budget.method("awq-int4").subject
    assert (subject.model, subject.revision, subject.checkpoint) == ("own/model", None, None)
    assert subject.calibration == str((budget.path.parent / "parent" / "texts.jsonl").resolve())


def test_a_child_with_the_same_weights_keeps_revision_and_checkpoint(write: Write) -> None:
    write(PARENT, "parent.yaml")
    subject = load_budget(write("extends: parent.yaml\nbaseline: nf4\n")).method("awq-int4").subject
    assert (subject.revision, subject.checkpoint, subject.calibration) == ("abc", "parent/awq", None)


def test_relative_paths_start_at_the_file_that_names_them(write: Write, tmp_path: Path) -> None:
    write('{"question": "1 + 1?", "answer": "#### 2"}\n', "data/q.jsonl")
    (tmp_path / "models" / "m").mkdir(parents=True)
    write("model: ../models/m\ntasks: {math: {file: ../data/q.jsonl}}\nmethods: {fp32: {}}\n", "budgets/base.yaml")
    budget = load_budget(write("extends: budgets/base.yaml\n"))
    assert budget.model == str((tmp_path / "models" / "m").resolve())
    assert budget.tasks["math"].file == str((tmp_path / "data" / "q.jsonl").resolve())


def test_builtin_names_what_ships_in_the_package(write: Write) -> None:
    text = "model: builtin\ncalibration: builtin\ntasks: {math: {file: builtin}}\nmethods: {gptq-int4: {}}\n"
    budget = load_budget(write(text))
    subject = budget.method("gptq-int4").subject
    assert (budget.model, budget.tasks["math"].file) == (str(BUILTIN_DIR), str(BUILTIN_DIR / "questions.jsonl"))
    assert subject.calibration == str(BUILTIN_DIR / "calibration.jsonl")
    assert Path(subject.calibration).is_file()


def test_a_checkpoint_needs_no_calibration(write: Write) -> None:
    budget = load_budget(write("model: m\nmethods: {gptq-int4: {checkpoint: m-gptq}}\n"))
    assert (budget.methods[0].subject.checkpoint, budget.methods[0].subject.calibration) == ("m-gptq", None)


def test_a_method_takes_the_files_gpu_unless_it_has_its_own(write: Write) -> None:
    text = """model: m
gpu: {min_vram: 16 GiB, min_capability: "8.0"}
methods: {fp16: {}, int8: {gpu: {count: 2}}, nf4: {gpu: true}, bf16: {gpu: false}}
"""
    assert [method.gpu for method in load_budget(write(text)).methods] == [
        GpuNeed(16 * 2**30, "8.0", 1),
        GpuNeed(None, None, 2),
        GpuNeed(),
        None,
    ]


@pytest.mark.parametrize(
    ("device", "value"),
    [("NVIDIA H100 80GB HBM3", 60), ("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA L4", 10), ("nvidia h100", 10)],
)
def test_a_limit_by_gpu_holds_where_the_name_matches_first(write: Write, device: str, value: float) -> None:
    text = 'model: m\nmethods: {nf4: {budget: {min_tokens_per_s: {"NVIDIA H100*": 60, "NVIDIA A100*": 40, "*": 10}}}}\n'
    target = load_budget(write(text)).method("nf4").limits[0].target(device)
    assert target is not None
    assert target.value == value


def test_a_limit_by_gpu_says_nothing_about_others(write: Write) -> None:
    limit = (
        load_budget(write('model: m\nmethods: {nf4: {budget: {max_vram: {"*H100*": 7 GiB}}}}\n')).methods[0].limits[0]
    )
    assert limit.target("NVIDIA L4") is None
    assert limit.target("NVIDIA H100 PCIe") is not None


@pytest.mark.parametrize("limits", ["max_vram: 7 GiB, max_weights: 7.5 GB", "max_vram: 7 GiB, max_weights: 7 GiB"])
def test_a_limit_on_a_part_may_reach_that_on_the_whole(write: Write, limits: str) -> None:
    assert len(load_budget(write(f"model: m\nmethods: {{nf4: {{budget: {{{limits}}}}}}}\n")).methods[0].limits) == 2


ALL = """model: m
baseline: fp16
workload: {new_tokens: 16}
tasks: {gsm8k: {questions: 100}, math: {file: builtin}}
methods:
  fp16: {budget: {max_load_time: 10 s}}
  nf4:
    budget:
      max_weights: 6 GiB
      max_load_time: 30 s
      max_vram: 7 GiB
      min_tokens_per_s: 20
      max_ttft: 100 ms
      min_speedup: 0.5
      max_weights_ratio: 0.5
      min_gsm8k: 50
      max_math_drop: 3
      max_math_flips: 5
"""


@pytest.mark.parametrize(
    ("names", "workloads", "tasks"),
    [
        ([], 0, []),
        (["max_weights", "max_load_time", "max_weights_ratio"], 0, []),
        (["max_vram"], 1, []),
        (["min_tokens_per_s"], 1, []),
        (["max_ttft"], 1, []),
        (["min_gsm8k"], 0, ["gsm8k"]),
        (["max_math_drop", "max_math_flips"], 0, ["math"]),
        (["max_vram", "min_speedup", "min_gsm8k", "max_math_drop"], 1, ["gsm8k", "math"]),
        (None, 1, ["gsm8k", "math"]),
    ],
    ids=["nothing", "loading", "memory", "speed", "first token", "task", "paired", "all kinds", "no choice"],
)
def test_only_what_the_limits_need_is_asked_for(
    write: Write, names: list[str] | None, workloads: int, tasks: list[str]
) -> None:
    budget = load_budget(write(ALL))
    nf4 = budget.method("nf4")
    chosen = None if names is None else [limit for limit in nf4.limits if limit.name in names]
    request = request_for(budget, nf4, chosen)
    assert (request.subject, request.of(Reply)) == (nf4.subject, (Reply(DEFAULT_PROMPT),))
    assert (len(request.of(Workload)), [task.name for task in request.of(Task)]) == (workloads, tasks)


def planned(*choices: tuple[Budget, str, list[str]]) -> dict[str, tuple[list[int], list[str]]]:
    """What has to be measured of each method: tokens of each workload, and tasks."""
    needs = Needs()
    for budget, name, limits in choices:
        method = budget.method(name)
        needs.add(budget, method, [limit for limit in method.limits if limit.name in limits])
    return {
        f"{r.subject.model} {r.subject.method}": ([w.new_tokens for w in r.of(Workload)], [t.name for t in r.of(Task)])
        for r in needs.requests.values()
    }


def test_a_relation_plans_the_baseline_for_the_same_figures(write: Write) -> None:
    budget = load_budget(write(ALL))
    assert planned((budget, "nf4", ["max_vram", "max_math_drop"])) == {
        "m nf4": ([16], ["math"]),
        "m fp16": ([], ["math"]),
    }


def test_without_a_relation_the_baseline_is_left_alone(write: Write) -> None:
    assert planned((load_budget(write(ALL)), "nf4", ["max_weights"])) == {"m nf4": ([], [])}


def test_two_files_on_one_model_measure_it_once_for_both(write: Write) -> None:
    one, other = load_budget(write(ALL)), load_budget(write(ALL.replace("16}", "32}"), "other.yaml"))
    assert one.method("nf4").subject.key == other.method("nf4").subject.key
    assert planned((one, "nf4", ["max_vram"]), (other, "nf4", ["max_vram"]), (other, "nf4", ["min_gsm8k"])) == {
        "m nf4": ([16, 32], ["gsm8k"])
    }


@pytest.mark.parametrize("change", ["nf4: {options: {double_quant: false}}", "int8: {}", "nf4: {checkpoint: m-nf4}"])
def test_what_loads_differently_is_measured_apart(write: Write, change: str) -> None:
    keys = {
        load_budget(write(f"model: m\nmethods: {{{text}}}\n")).methods[0].subject.key for text in ("nf4: {}", change)
    }
    assert len(keys) == 2


def test_a_misspelt_directory_is_not_taken_for_a_hub_id(write: Write, tmp_path: Path) -> None:
    (tmp_path / "models" / "good").mkdir(parents=True)
    (tmp_path / "models" / "good" / "config.json").write_text("{}")
    methods = "methods: {fp16: {}}\n"
    with pytest.raises(BudgetError, match=r"model: there is no directory 'models/goood'; did you mean 'good'?"):
        load_budget(write(f"model: models/goood\n{methods}"))
    assert load_budget(write(f"model: models/goood\nrevision: main\n{methods}")).model == "models/goood"
    assert load_budget(write(f"model: models/Qwen3-8B\n{methods}")).model == "models/Qwen3-8B"


def test_what_is_read_later_is_checked_at_collection(write: Write, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"texts": "two"}\n')
    gptq = "model: m\ncalibration: c.jsonl\nmethods: {gptq-int4: {options: {texts: 2}}, awq-int4: {}}\n"
    with pytest.raises(BudgetError, match=r"c.jsonl:2: must be an object with the text `text`"):
        load_budget(write(gptq))
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(BudgetError, match=r"calibration: c.jsonl holds 2 calibration texts and 64 were asked for"):
        load_budget(write(gptq.replace("awq-int4: {}", "awq-int4: {options: {texts: 64}}")))
    text = "model: m\nperplexity: {file: t.txt}\nmethods: {fp16: {}}\n"
    (tmp_path / "t.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BudgetError, match=r"file: t.txt: byte 3 is not UTF-8 text"):
        load_budget(write(text))
    (tmp_path / "t.txt").write_bytes(b" \n")
    with pytest.raises(BudgetError, match=r"file: t.txt holds no text"):
        load_budget(write(text))


def test_a_checkpoints_options_are_those_that_the_budget_names(write: Write) -> None:
    budget = load_budget(
        write(
            "model: m\nmethods:\n  awq-int4: {checkpoint: x/y, options: {group_size: 32}}\n  nf4: {checkpoint: x/z}\n"
        )
    )
    assert [method.subject.options for method in budget.methods] == [{"group_size": 32}, {}]


def test_each_method_knows_its_baseline(write: Write) -> None:
    text = "model: m\nbaseline: {}\nmethods: {{fp32: {{}}, bf16: {{}}, nf4: {{}}}}\n"
    one, two = (load_budget(write(text.format(name), f"{name}.yaml")) for name in ("fp32", "bf16"))
    assert one.method("fp32").subject.against is None
    assert one.method("nf4").subject.against == one.method("fp32").subject.key
    assert one.method("nf4").subject.key != two.method("nf4").subject.key


def test_same_as_source_is_about_checkpoints(write: Write) -> None:
    text = "model: m\nsame_as_source: [tokenizer]\nmethods:\n  nf4: {}\n  awq-int4: {checkpoint: x/y}\n"
    assert [m.subject.same_as_source for m in load_budget(write(text)).methods] == [(), ("tokenizer",)]
    with pytest.raises(BudgetError, match=r"same_as_source compares a ready checkpoint with `model`"):
        load_budget(write(text.replace("nf4: {}", "nf4: {same_as_source: [tensors]}")))
    with pytest.raises(BudgetError, match=r"'tokeniser' is not one of .*; did you mean 'tokenizer'?"):
        load_budget(write(text.replace("[tokenizer]", "[tokeniser]")))


def test_a_limit_by_gpu_holds_for_one_family(load: Callable[[str], Budget]) -> None:
    (limit,) = load("max_vram: {'NVIDIA L4*': 7 GiB, 'NVIDIA L40*': 8 GiB}").method("nf4").limits
    found = {name: limit.target(f"NVIDIA {name}") for name in ("L4", "L4 24GB", "L40", "L40S")}
    assert {name: target.text if target else None for name, target in found.items()} == {
        "L4": "7 GiB",
        "L4 24GB": "7 GiB",
        "L40": "8 GiB",
        "L40S": None,
    }


def test_a_budget_holds_the_texts_of_all_files_that_it_was_read_from(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("model: builtin\nmethods: {fp32: {}}  # a remark\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nmethods: {fp32: {budget: {max_weights: 3 MiB}}}\n")
    names = ["own.yaml", "base.yaml"]
    sources = load_budget(tmp_path / "own.yaml").sources
    assert [(Path(each.file).name, each.text) for each in sources] == [(n, (tmp_path / n).read_text()) for n in names]
