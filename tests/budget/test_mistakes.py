"""A table of mistakes, each with the line and the words that its author gets to read."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from pytest_quantbudget.budget import yaml
from pytest_quantbudget.budget.find import find_budgets
from pytest_quantbudget.budget.reader import load_budget
from pytest_quantbudget.core.problems import BudgetError

QUESTION = '{"question": "1 + 1?", "answer": "1 + 1 = 2\\n#### 2"}\n'
SECOND = QUESTION.replace("1 + 1", "2 + 0")
FILES = {
    "three.jsonl": QUESTION + SECOND + QUESTION.replace("1?", "1!"),
    "cut.jsonl": QUESTION + SECOND + QUESTION[:30],
}


@pytest.fixture(autouse=True, params=["libyaml", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mistake has the same words and line with either of PyYAML's parsers."""
    if request.param == "python":
        monkeypatch.setattr(yaml, "_CLoader", None)


def mistakes(folder: Path, text: str, files: Mapping[str, str] = FILES) -> list[tuple[str, int, str]]:
    """Every problem of a budget: file, line, message."""
    for name, content in files.items():
        (folder / name).write_text(content)
    path = folder / "b.yaml"
    path.write_text(text)
    with pytest.raises(BudgetError) as error:
        load_budget(path)
    return [(problem.file.name, problem.line, problem.message) for problem in error.value.problems]


def told(found: list[tuple[str, int, str]], message: str) -> list[tuple[int, str]]:
    """Line and message of each problem, cut to the length of the message that is expected."""
    return [(line, text[: len(message)]) for _, line, text in found]


def table(*rows: tuple[str, str, int, str]) -> pytest.MarkDecorator:
    """Rows of id, text, line and the beginning of the message."""
    return pytest.mark.parametrize(("text", "line", "message"), [pytest.param(*r[1:], id=r[0]) for r in rows])


@table(
    ("no mapping", "- model\n", 1, "a budget is a mapping with `model` and `methods`"),
    ("no model", "# x\nmethods: {fp32: {}}", 2, "a budget needs a `model`: a hub id, a directory, or builtin"),
    ("model a number", "model: 7\nmethods: {fp32: {}}", 1, "model: must be text, not 7; quote it"),
    ("model no folder", "model: ./none\nmethods: {fp32: {}}", 1, "model './none' is neither a directory nor a hub id"),
    ("model no id", "model: Qwen 3\nmethods: {fp32: {}}", 1, "model 'Qwen 3' is neither a directory nor a hub id"),
    ("model nobody's", "model: ~nobody-here/m\nmethods: {fp32: {}}", 1, "model '~nobody-here/m' is neither a"),
    ("no methods", "model: m\n", 1, "a budget needs `methods`: fp32, bf16, fp16, int8, nf4"),
    ("methods a list", "model: m\nmethods: [fp32]\n", 2, "a budget needs `methods`: fp32"),
    ("unknown method", "model: m\nmethods:\n  fp8: {}\n", 3, "there is no method 'fp8'; did you mean 'fp32'?"),
    ("method empty", "model: m\nmethods:\n  fp32:\n", 3, "fp32 takes keys (checkpoint, options, budget, refer"),
    ("duplicate", "model: m\nmethods:\n  fp32: {}\n  fp32: {}\n", 4, "'fp32' is written here and on line 3; remove"),
    ("tab", "model: m\nmethods:\n\tfp32: {}\n", 3, "a tab cannot indent YAML; use spaces"),
    ("extends", "extends: nine.yaml\n", 1, "`extends` names 'nine.yaml', which is not a file"),
    ("extends itself", "extends: b.yaml\n", 1, "`extends` runs in a circle: b.yaml -> b.yaml"),
    ("no checkpoint", "model: m\nmethods:\n  gptq-int4: {}\n", 3, "gptq-int4 has no `checkpoint`, and the file has no"),
    ("calibration", "model: m\ncalibration: c.txt\nmethods: {awq-int4: {}}", 2, "calibration: there is no file 'c"),
)  # fmt: skip
def test_a_mistake_in_the_file(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert told(mistakes(tmp_path, text), message) == [(line, message)]


@table(
    ("unknown key", "method: {}", 2, "a budget has no key 'method'; did you mean 'methods'?"),
    ("revision a number", "revision: 1234567", 2, "revision: must be text, not 1234567; quote it"),
    ("baseline missing", "baseline: fp16", 2, "the baseline 'fp16' is not among the methods; did you mean 'fp32'?"),
    ("baseline a number", "baseline: 16", 2, "baseline: must be text, not 16; quote it"),
    ("workload key", "workload:\n  batch: 2", 3, "workload has no key 'batch'; did you mean 'batch_size'?"),
    ("workload zero", "workload: {repeats: 0}", 2, "repeats: must be a whole number of at least 1, not 0"),
    ("compile a word", "workload: {compile: fast}", 2, "compile: must be true or false, "),
    ("workload half", "workload: {repeats: 2.5}", 2, "repeats: must be a whole number of at least 1, not 2.5"),
    ("one new token", "workload: {new_tokens: 1}", 2, "new_tokens: must be a whole number of at least 2, not 1"),
    ("workload a list", "workload: [512]", 2, "workload takes keys (prompt_tokens, new_tokens, batch_size, repeats,"),
    ("gpu key", "gpu: {min_vran: 1 GiB}", 2, "gpu has no key 'min_vran'; did you mean 'min_vram'?"),
    ("gpu bare size", "gpu: {min_vram: 16}", 2, "min_vram: 16 has no unit, and GB and GiB differ"),
    ("gpu capability", "gpu: {min_capability: 8.0}", 2, "min_capability: must be a compute capability in"),
    ("gpu superscript", "gpu: {min_capability: '8.\u00b2'}", 2, "min_capability: must be a compute capability in"),
    ("no gpu at all", "gpu: {count: 0}", 2, "count: must be a whole number of at least 1, not 0"),
    ("gpu text", "gpu: H100", 2, "gpu takes keys (min_vram, min_capability, count), not 'H100'"),
)  # fmt: skip
def test_a_mistake_in_one_entry_of_the_file(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert told(mistakes(tmp_path, f"model: m\n{text}\nmethods: {{fp32: {{}}}}\n"), message) == [(line, message)]


TASK = """
model: builtin
methods: {{fp32: {{}}}}
tasks:
  {}
"""


@table(
    ("unknown key", "math: {file: builtin, shot: 5}", 5, "task math has no key 'shot'; did you mean 'shots'?"),
    ("no file", "math: {questions: 10}", 5, "task 'math' needs a `file`: only gsm8k, gsm8k_cot have a set on the hub"),
    ("nothing at all", "math:", 5, "task 'math' needs a `file`"),
    ("missing file", "math: {file: tree.jsonl}", 5, "file: there is no file 'tree.jsonl'; did you mean 'three.jsonl'?"),
    ("null byte", 'math: {file: "a\\0b"}', 5, "file: there is no file 'a\\x00b'"),
    ("folder", "math: {file: .}", 5, "file: there is no file '.'"),
    ("file a number", "math: {file: 3}", 5, "file: must be text, not 3; quote it"),
    ("too many", "math:\n    file: three.jsonl\n    questions: 4", 7, "4 questions and 0 shots are needed from a set"),
    ("shots too many", "math: {file: three.jsonl, shots: 3}", 5, "questions and 3 shots are needed from a set of 3"),
    ("zero questions", "math: {file: builtin, questions: 0}", 5, "questions: must be a whole number of at least 1"),
    ("negative seed", "math: {file: builtin, seed: -1}", 5, "seed: must be a whole number of at least 0, not -1"),
    ("yes as number", "math: {file: builtin, shots: yes}", 5, "shots: must be a whole number of at least 0, not True"),
    ("extract", "math: {file: builtin, extract: flexibel}", 5, "extract: 'flexibel' is not one of strict, flexible"),
    ("name of a limit", "tokens_per_s: {file: builtin}", 5, "'tokens_per_s' cannot name a task: its limit"),
    ("name with hyphen", "word-math: {file: builtin}", 5, "'word-math' cannot name a task: use a-z, 0-9 and _"),
    ("settings a list", "math: [builtin]", 5, "task math takes keys (questions, shots, seed, file, style"),
)  # fmt: skip
def test_a_mistake_in_a_task(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert told(mistakes(tmp_path, TASK.format(text)), message)[:1] == [(line, message)]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        (FILES["cut.jsonl"], 3, "is not a JSON object; was the file truncated?"),
        (QUESTION + "\n[1]\n", 3, "must be an object with the texts `question` and `answer`"),
        (QUESTION + '{"question": "1?", "answer": 1}\n', 2, "must be an object with the texts `question` and `answer`"),
        (QUESTION + '{"question": "1?", "answer": "1"}\n', 2, "the answer does not end in `#### N`"),
        (f"{SECOND}{QUESTION}\n{QUESTION}", 4, "repeats the question of line 2"),
        ("\n\n", 0, "holds no questions"),
    ],
    ids=["cut off", "list", "number as answer", "no final answer", "repeated", "empty"],
)
def test_a_mistake_in_a_question_file_names_its_line_there(
    tmp_path: Path, content: str, line: int, message: str
) -> None:
    text = "model: builtin\ntasks:\n  math: {file: q.jsonl}\nmethods: {fp32: {}}\n"
    assert mistakes(tmp_path, text, {"q.jsonl": content}) == [("q.jsonl", line, message)]


METHOD = """model: builtin
baseline: fp32
calibration: builtin
tasks: {{math: {{file: three.jsonl}}}}
methods:
  fp32: {{}}
  {}
"""


@table(
    ("unknown key", "nf4: {limits: {}}", 7, "nf4 has no key 'limits'; known: checkpoint, options, budget, reference,"),
    ("unknown option", "nf4: {options: {dobule_quant: true}}", 7, "nf4's options has no key 'dobule_quant'; did you"),
    ("option of another", "int8: {options: {double_quant: true}}", 7, "int8's options has no key 'double_quant'"),
    ("flag", "nf4: {options: {double_quant: 1}}", 7, "double_quant: must be true or false, not 1"),
    ("dtype", "nf4: {options: {compute_dtype: bf16}}", 7, "compute_dtype: 'bf16' is not one of bfloat16, float16"),
    ("group size", "gptq-int4: {options: {group_size: 100}}", 7, "group_size: 100 is not one of -1, 32, 64, 128"),
    ("bits", "gptq-int4: {options: {bits: 4.0}}", 7, "bits: 4.0 is not one of 4"),
    ("options a list", "nf4: {options: [double_quant]}", 7, "nf4's options takes keys (double_quant, compute_dtype)"),
    ("marks text", "nf4: {marks: slow}", 7, "marks: must be a list of marker names, such as [slow], not 'slow'"),
    ("marks hyphen", "nf4: {marks: [very-slow]}", 7, "marks: must be a list of marker names, such as [slow], not"),
    ("method's gpu", "nf4:\n    gpu: {count: two}", 8, "count: must be a whole number of at least 1, not 'two'"),
    ("checkpoint", "bf16: {checkpoint: m}", 7, "bf16 takes no checkpoint: its weights are those of `model`"),
    ("checkpoint path", "nf4: {checkpoint: ./none}", 7, "checkpoint './none' is neither a directory nor a hub id"),
    ("budget a list", "nf4: {budget: [max_vram]}", 7, "budget takes limits (max_vram, max_vram_ratio, "),
)  # fmt: skip
def test_a_mistake_in_a_method(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert told(mistakes(tmp_path, METHOD.format(text)), message) == [(line, message)]


@table(
    ("unknown", "max_vran: 7 GiB", 9, "there is no limit 'max_vran'; did you mean 'max_vram'?"),
    (
        "min for max", "min_vram: 7 GiB", 9,
        "there is no limit 'min_vram', and no task 'vram' is declared; did you mean 'max_vram'?",
    ),
    (
        "undeclared task", "max_gsm8k_drop: 1", 9,
        "there is no limit 'max_gsm8k_drop', and no task 'gsm8k' is declared; `tasks: {gsm8k: {}}` at the top of the",
    ),
    (
        "undeclared task of one's own", "max_sums_drop: 1", 9,
        "there is no limit 'max_sums_drop', and no task 'sums' is declared; `tasks: {sums: {file: QUESTIONS.jsonl}}`",
    ),
    (
        "nearly a limit", "min_token_per_s: 7", 9,
        "there is no limit 'min_token_per_s', and no task 'token_per_s' is declared; did you mean 'min_tokens_per_s'?",
    ),
    ("bare size", "max_vram: 7", 9, "max_vram: 7 has no unit, and GB and GiB differ by 7 %; write for example 17 GiB"),
    ("wrong unit", "max_vram: 7 Gib", 9, "max_vram: '7 Gib' has an unknown unit 'Gib'; did you mean 'GiB'?"),
    ("unit of a time", "max_weights: 80 ms", 9, "max_weights: '80 ms' has an unknown unit 'ms'; known: B, kB"),
    ("bare time", "max_ttft: 80", 9, "max_ttft: 80 has no unit, and seconds and milliseconds differ by 1,000"),
    ("size zero", "max_vram: 0 GiB", 9, "max_vram: '0 GiB' must be a finite number above 0"),
    ("size negative", "max_vram: -7 GiB", 9, "max_vram: '-7 GiB' must be a finite number above 0"),
    ("size infinite", "max_vram: 1e999 GiB", 9, "max_vram: '1e999 GiB' must be a finite number above 0"),
    ("kernel", "kernel: Marlin* or Exl*", 9, "kernel: must be names of layer classes such as Marlin*, with | between"),
    ("fraction", "min_quantized_fraction: 85", 9, "min_quantized_fraction: must be above 0 and at most 1, not 85"),
    ("null", "max_vram: null", 9, "max_vram: must be a number with a unit, such as 17 GiB"),
    ("NaN", "max_vram_ratio: .nan", 9, "max_vram_ratio: nan can never be met or missed; write a finite number"),
    ("infinite", "max_vram_ratio: .inf", 9, "max_vram_ratio: inf can never be met or missed"),
    ("beyond sense", f"max_vram_ratio: 1{'0' * 400}", 9, f"the number that begins with '1{'0' * 59}' is too long"),
    ("zero", "min_speedup: 0", 9, "min_speedup: must be above 0, not 0"),
    ("negative", "max_vram_ratio: -0.5", 9, "max_vram_ratio: must be above 0, not -0.5"),
    ("negative drop", "max_math_drop: -1", 9, "max_math_drop: must be at least 0 and below 100, not -1"),
    ("drop of all", "max_math_drop: 100", 9, "max_math_drop: must be at least 0 and below 100, not 100"),
    ("over 100 %", "min_math: 101", 9, "min_math: must be above 0 and at most 100, not 101"),
    ("text", "min_tokens_per_s: '1e3'", 9, "min_tokens_per_s: must be a bare number, and '1e3' is text"),
    ("infinite power", "min_tokens_per_s: 1e999", 9, "min_tokens_per_s: inf can never be met or missed"),
    ("base 8 or 10", "min_tokens_per_s: 010", 9, "'010' is ambiguous: YAML 1.1 reads digits behind a 0 in base 8"),
    ("text or base 10", "min_tokens_per_s: -0_8", 9, "'-0_8' is ambiguous: YAML 1.1 reads digits behind a 0 in base 8"),
    ("base 60 or text", "min_tokens_per_s: 1:30", 9, "'1:30' is ambiguous: YAML 1.1 reads a number in base 60"),
    ("auto for a pattern", "kernel: auto", 9, "kernel takes no `auto`; name what is allowed"),
    ("auto for a pattern of a GPU", "kernel: {'NVIDIA*': auto}", 9, "kernel takes no `auto`; name what is allowed"),
    ("unit on a ratio", "max_vram_ratio: 45 %", 9, "max_vram_ratio: must be a bare number, and '45 %' is text"),
    ("yes", "min_speedup: yes", 9, "min_speedup: must be a number, not True"),
    ("list", "max_vram: [7 GiB]", 9, "max_vram: must be a number with a unit"),
    ("duplicate", "max_vram: 7 GiB\n      max_vram: 8 GiB", 10, "'max_vram' is written here and on line 9"),
    ("no GPU", "max_vram: {}", 9, "max_vram: must be a number with a unit"),
    ("by GPU", "max_vram:\n        'H100*': 7", 10, "max_vram: 7 has no unit"),
    ("GPU never reached", "max_vram:\n        '*': 7 GiB\n        'NVIDIA H100*': 8 GiB", 11, "'NVIDIA H100*' is nev"),
    ("weights above", "max_vram: 7 GiB\n      max_weights: 7.6 GB", 10, "max_weights 7.6 GB contradicts max_vram"),
    ("allocated above", "max_vram_reserved: 7 GiB\n      max_vram: 8 GiB", 10, "max_vram 8 GiB contradicts max_vram_r"),
    (
        "reserved above", "max_vram_reserved: 9 GiB\n      max_vram_process: 8 GiB", 9,
        "max_vram_reserved 9 GiB contradicts max_vram_process 8 GiB: what torch reserves is part of that memory",
    ),
    (
        "two steps", "max_vram: 9 GiB\n      max_vram_process: 8 GiB", 9,
        "max_vram 9 GiB contradicts max_vram_process 8 GiB: what is allocated is part of that memory",
    ),
    (
        "three steps", "max_weights: 9 GiB\n      max_vram_process: 8 GiB", 9,
        "max_weights 9 GiB contradicts max_vram_process 8 GiB: the weights are part of that memory",
    ),
    ("reserved bare", "max_vram_reserved: 7", 9, "max_vram_reserved: 7 has no unit, and GB and GiB differ"),
    ("process in time", "max_vram_process: 7 s", 9, "max_vram_process: '7 s' has an unknown unit 's'"),
    ("drop above", "max_math_drop: 3\n      max_math_flips: 2", 9, "max_math_drop 3 contradicts max_math_flips 2: a "),
)  # fmt: skip
def test_a_mistake_in_a_limit(tmp_path: Path, text: str, line: int, message: str) -> None:
    found = mistakes(tmp_path, METHOD.format(f"nf4:\n    budget:\n      {text}"))
    assert told(found, message) == [(line, message)]


LIMIT_OF_THE_BASELINE = """model: builtin
baseline: fp32
methods:
  fp32: {budget: {max_weights_ratio: 0.5}}
"""
WITHOUT_BASELINE = """model: builtin
methods:
  fp32: {}
  bf16:
    budget: {min_speedup: 0.5}
"""


@table(
    ("itself", LIMIT_OF_THE_BASELINE, 4, "max_weights_ratio compares the baseline fp32 with itself: it cannot fail"),
    ("none", WITHOUT_BASELINE, 5, "min_speedup compares with a baseline, and the file has no `baseline`"),
)
def test_a_relation_needs_another_method_to_relate_to(tmp_path: Path, text: str, line: int, message: str) -> None:
    assert mistakes(tmp_path, text) == [("b.yaml", line, message)]


@pytest.mark.parametrize("limit", ["kernel: Marlin*", "min_quantized_fraction: 0.5"])
def test_a_method_that_quantizes_nothing_has_no_limit_on_that(tmp_path: Path, limit: str) -> None:
    text = f"model: builtin\nmethods:\n  fp16:\n    budget: {{{limit}}}\n"
    why = f"{limit.split(':')[0]} needs a method that quantizes: fp16 stores every value in 16 bits or more"
    assert mistakes(tmp_path, text) == [("b.yaml", 4, why)]


MANY = """model: builtin
baselin: fp32
tasks:
  math: {shots: 2.5, file: three.jsonl}
methods:
  fp32:
    budget:
      min_math: 900
      max_vram: 7
  bf17: {}
"""


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = mistakes(tmp_path, MANY)
    assert [(line, message.split()[0]) for _, line, message in found] == [
        (2, "a"),
        (4, "shots:"),
        (8, "min_math:"),
        (9, "max_vram:"),
        (10, "there"),
    ]


def test_mistakes_on_one_line_are_told_in_the_order_of_that_line(tmp_path: Path) -> None:
    keys = ["methd", "tsks", "modl", "gppu", "baselin"]
    found = mistakes(tmp_path, f"{{model: m, {', '.join(f'{key}: 1' for key in keys)}, methods: {{fp32: {{}}}}}}\n")
    assert [message.split("'")[1] for _, _, message in found] == keys


def test_a_mistake_that_several_methods_inherit_is_told_once(tmp_path: Path) -> None:
    found = mistakes(tmp_path, "model: m\ngpu: {count: 0}\nmethods: {fp32: {}, bf16: {}}\n")
    assert len(found) == 1


def test_an_inherited_mistake_is_told_where_it_stands(tmp_path: Path) -> None:
    base = "model: m\nmethods:\n  fp32: {budget: {max_vram: 7}}\n"
    found = mistakes(tmp_path, "extends: base.yaml\nbaseline: fp32\n", {"base.yaml": base})
    assert [(name, line) for name, line, _ in found] == [("base.yaml", 3)]


def test_the_error_reads_as_file_line_message_and_the_users_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text("model: builtin\nmethods:\n  fp32:\n    budget: {max_vran: 7 GiB}  # tight\n")
    with pytest.raises(BudgetError) as error:
        load_budget(Path("b.yaml"))
    assert str(error.value) == (
        "b.yaml:4: there is no limit 'max_vran'; did you mean 'max_vram'?\n    budget: {max_vran: 7 GiB}  # tight\n"
        "             ^^^^^^^^^^^^^^^"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "empty: this directory holds no budget (*.yaml, *.yml)"),
        ("*.yml", "*.yml: this pattern matches no file"),
        ("qwen.yml", "qwen.yml: there is no such budget; did you mean 'qwen.yaml'?"),
        ("none/qwen.yaml", f"none{os.sep}qwen.yaml: there is no such budget"),
        ("~nobody-here/qwen.yaml", f"~nobody-here{os.sep}qwen.yaml: there is no such budget"),
    ],
    ids=["folder without budgets", "glob without matches", "misspelt", "missing folder", "nobody's home"],
)
def test_a_budget_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("qwen.yaml").touch()
    with pytest.raises(BudgetError) as error:
        find_budgets(name, tmp_path)
    assert str(error.value) == message
