"""One budget over several engines: one table, equal answers, and servers that fail beside methods that do not."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from llama_servers import command, needs_server, write_builtin
from scripted_server import json_reply, scripted

pytestmark = [pytest.mark.model, needs_server]
pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

BUDGET = """
model: builtin
baseline: fp32
calibration: builtin
workload: {{prompt_tokens: 32, new_tokens: 64, repeats: 2}}
tasks:
  wordmath: {{file: builtin, questions: 40, divergence: true}}
  grown: {{file: builtin, questions: {{start: 40, max: 120}}}}
methods:
  fp32: {{budget: {{min_wordmath: 50}}}}
  bf16: {{budget: {{max_weights_ratio: 0.51, max_wordmath_drop: 20}}}}
  fp16: {{budget: {{max_wordmath_drop: 20}}}}
  int8: {{budget: {{max_wordmath_drop: 20}}}}
  nf4: {{budget: {{max_wordmath_drop: 20}}}}
  gptq-int4: {{options: {{texts: 16}}, budget: {{max_wordmath_drop: 30}}}}
  awq-int4: {{options: {{texts: 16}}, budget: {{max_wordmath_drop: 30}}}}
  torchao-int8: {{budget: {{max_wordmath_drop: 20}}}}
  torchao-int4: {{options: {{group_size: 32}}, budget: {{max_wordmath_drop: 30}}}}
  torchao-fp8: {{budget: {{max_wordmath_drop: 20}}}}
  gguf-q8_0: {{budget: {{max_weights_ratio: 0.3, min_token_agreement: 90, max_kl: 0.1, max_wordmath_drop: 20}}}}
  gguf-q4_0: {{budget: {{max_weights_ratio: 0.2, max_wordmath_drop: 20}}}}
  grown:
    engine: openai
    server: {{command: {served}}}
    budget: {{max_grown_drop: 25}}
  prod:
    engine: openai
    server: {{command: {served}}}
    budget:
      max_weights: 3 MiB
      max_wordmath_drop: 20
      max_load_time: 5 min
      min_token_agreement: 50
      max_disk: 1 GiB
  dead:
    engine: openai
    server: {{command: [sh, -c, "echo no memory on the card; exit 3", "{{port}}"]}}
    budget: {{max_wordmath_drop: 20, min_tokens_per_s: 0.1}}
  other:
    engine: openai
    server: {{url: "{other}", model: Qwen/Qwen3-8B}}
    budget: {{max_wordmath_drop: 20}}
  stranger:
    engine: openai
    server: {{url: "{stranger}"}}
    budget: {{max_wordmath_drop: 20}}
"""
FAILED = {
    "dead::max_wordmath_drop": "ServerFailed: the server ended with exit code 3",
    "dead::min_tokens_per_s": "ServerFailed: the server ended with exit code 3",
    "other::max_wordmath_drop": "does not serve 'Qwen/Qwen3-8B'",
    "stranger::max_wordmath_drop": "GET /v1/models was answered with status 404",
}
SKIPPED = {
    "prod::min_token_agreement": "the server does not give the log-probabilities of a prompt's tokens",
    "prod::max_disk": "the files of a served model are not looked at",
}


def words(items: tuple[str, ...]) -> str:
    """A command as a budget has it, this interpreter by its placeholder."""
    return json.dumps(["{python}" if item == sys.executable else item for item in items])


def outcomes(result: pytest.RunResult) -> dict[str, int]:
    """Without warnings, which are about the numbers of questions."""
    return {name: count for name, count in result.parseoutcomes().items() if not name.startswith("warning")}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not in the test: pytester forgets what is imported there, and torch cannot be imported twice.
    return write_builtin(tmp_path_factory.mktemp("gguf") / "served.gguf")


def test_one_budget_over_many_methods_of_three_engines(gguf: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / "served.gguf").write_bytes(gguf.read_bytes())
    with scripted({"/v1/models": json_reply({"data": [{"id": "q"}]})}) as other, scripted({}) as stranger:
        text = BUDGET.format(served=words(command(Path("served.gguf"))), other=other, stranger=stranger)
        (pytester.path / "b.yaml").write_text(text)
        result = pytester.runpytest(
            "--quant-budget", "b.yaml", "--quant-allow-commands", "--quant-report", "r.json", "--quant-cache", "c"
        )
    assert outcomes(result) == {"passed": 21, "failed": 4, "skipped": 2}
    report = json.loads((pytester.path / "r.json").read_text())
    methods = {method["name"]: method for method in report["budgets"][0]["methods"]}
    verdicts = {f"{name}::{limit['name']}": limit["verdict"] for name, m in methods.items() for limit in m["limits"]}
    for id_, message in {**FAILED, **SKIPPED}.items():
        assert message in verdicts[id_]["message"], verdicts[id_]["message"]
        assert verdicts[id_]["outcome"] == ("skipped" if id_ in SKIPPED else "failed"), verdicts[id_]
    result.stdout.fnmatch_lines(["*no memory on the card*"])

    def answers(name: str, wanted: str = "wordmath") -> list[Any]:
        tasks = methods[name]["measurement"]["tasks"]
        return [answer["text"] for task in tasks if task["task"]["name"] == wanted for answer in task["answers"]]

    # At full precision nothing depends on who runs the model.
    assert answers("prod") == answers("fp32")
    assert 40 <= len(answers("grown", "grown")) < 120 == len(answers("fp32", "grown")), "no more than decide are asked"
    assert sum(a != b for a, b in zip(answers("gguf-q8_0"), answers("fp32"), strict=True)) <= 2
    facts = {name: method["measurement"]["engine"] for name, method in methods.items()}
    assert facts["prod"]["capabilities"]["token-id prompts"] == "yes"
    assert facts["gguf-q8_0"]["buffers"]["model"] > 0
    # What a server answered is measured anew in the next run; the others' figures are used again.
    again = pytester.runpytest(
        "--quant-budget", "b.yaml", "--quant-allow-commands", "--quant-report", "r.json", "--quant-cache", "c",
        "-k", "(prod or q8_0) and drop",
    )  # fmt: skip
    assert outcomes(again) == {"passed": 2, "deselected": 25}
    report = json.loads((pytester.path / "r.json").read_text())
    reused = {
        method["name"]: [bool(task["origin"]["reused"]) for task in method["measurement"]["tasks"]]
        for method in report["budgets"][0]["methods"]
        if method["measurement"]
    }
    assert (reused["prod"], reused["gguf-q8_0"]) == ([False], [True])
