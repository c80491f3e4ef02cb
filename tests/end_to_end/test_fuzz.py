"""What others wrote is read or refused in words, in time: inputs that found something, and near-valid ones.

`QUANT_FUZZ_EXAMPLES=100000 pytest tests/end_to_end/test_fuzz.py` tries many more, and others each time;
tools/fuzz goes further.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import fuzz_inputs
import pytest
from fuzz_targets import KEY, Target, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.measure import store

CORPUS = Path(__file__).parents[1] / "corpus"
EXAMPLES = int(os.environ.get("QUANT_FUZZ_EXAMPLES", "0"))
LONGEST_S = 20  # for one input on a busy machine; those below took minutes, or all memory

HEAD = "model: builtin\n"
NEAR_VALID: Mapping[str, tuple[Callable[[Random], bytes], Callable[[bytes, Random], bytes | None]]] = {
    "budget": (fuzz_inputs.budget_files, fuzz_inputs.edit_budget),
    "report": (fuzz_inputs.report, fuzz_inputs.edit_report),
    "entry": (fuzz_inputs.entry, fuzz_inputs.edit_entry),
}
fuzzing = settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
SEEDS, EDITS = st.integers(0, 2**64 - 1), st.integers(0, 5)


@pytest.fixture(name="known", scope="module")
def _known() -> Iterator[Mapping[str, Target]]:
    with targets() as found:
        yield found


def _flow(template: str, count: int) -> str:
    return "{" + ", ".join(template.format(i) for i in range(count)) + "}"


def _many(template: str, count: int) -> str:
    return "".join(template.format(i) for i in range(count))


# Too long to lie about as files: what made each long is one line.
LONG: Mapping[str, Callable[[], str]] = {
    "unknown keys": lambda: HEAD + _many("k{}: 1\n", 5_000),
    "unknown limits": lambda: f"{HEAD}methods: {{fp32: {{budget: {_flow('zz{}: 1', 3_000)}}}}}\n",
    "tasks and unknown limits": lambda: (
        f"{HEAD}tasks: {_flow('t{}: {{file: x}}', 1_500)}\nmethods: {{fp32: {{budget: {_flow('qq{}: 1', 1_500)}}}}}\n"
    ),
    "tasks with one file": lambda: (
        f"{HEAD}tasks: {_flow('t{}: {{file: ./questions.jsonl}}', 2_000)}\nmethods: {{fp32: {{}}}}\n%%%%\n\n%%%%\n"
        + '{"question": "a", "answer": "####"}\n' * 2_000
    ),
    "device patterns": lambda: f"{HEAD}methods: {{fp32: {{budget: {{max_vram: {_flow('p{}: 1 GiB', 5_000)}}}}}}}\n",
    "a long text, repeated": lambda: f"x: &t {'a' * 100_000}\nmethods: [{'*t,' * 5_000}]\nmodel: *t\n",
    "a long text in many messages": lambda: (
        f"{HEAD}x: &t {'a' * 100_000}\nmethods: {{fp32: {{budget: {{max_vram: {_flow('p{}: *t', 2_000)}}}}}}}\n"
    ),
    "one mapping merged often": lambda: f"x: &a {_flow('a{}', 5_000)}\ny: {{<<: [{'*a,' * 5_000}]}}\n",
    "merges of merges": lambda: f"x: &a {_flow('a{}', 3_000)}\ny: {{<<: [{'{<<: *a},' * 3_000}]}}\n",
    "a long tag, repeated": lambda: f"%TAG ! {'x' * 100_000}\n---\n{'- !a 1' * 5_000}",
    "a number in base 60": lambda: f"{HEAD}workload: {{new_tokens: 1{':59' * 50_000}}}\n",
    "a fraction in base 60": lambda: f"{HEAD}workload: {{new_tokens: 1{':59' * 5_000}.5}}\n",
    "hexadecimal digits": lambda: f"{HEAD}methods: {{fp32: 0x{'f' * 100_000}}}\n",
    "digits of a size": lambda: f"{HEAD}methods: {{fp32: {{budget: {{max_vram: {'1' * 100_000} GiB}}}}}}\n",
    "digits of a capability": lambda: f"{HEAD}gpu: {{min_capability: '{'9' * 5_000}.0'}}\nmethods: {{fp32: {{}}}}\n",
    "digits of a version": lambda: f"%YAML 1.{'1' * 5_000}\n---\na",
    "a long path": lambda: f"{HEAD}extends: {'a/' * 30_000}b\nmethods: {{fp32: {{}}}}\n",
    "empty lists": lambda: f"[{'[],' * 100_000}]",
}


@pytest.mark.parametrize(
    "path", [p for p in sorted(CORPUS.rglob("*")) if p.is_file()], ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_corpus_of_what_found_something(known: Mapping[str, Target], path: Path) -> None:
    _in_time(known[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("path", sorted((CORPUS / "report").iterdir()), ids=lambda p: p.name)
def test_corpus_of_reports_on_the_command_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["table", str(path)])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "") if out else (code, err.count("ERROR: ")) == (4, 1)


@pytest.mark.parametrize("name", LONG)
def test_corpus_of_long_budgets(known: Mapping[str, Target], name: str) -> None:
    _in_time(known["budget"], LONG[name]().encode())


def _in_time(target: Target, data: bytes) -> None:
    started = time.monotonic()
    target(data)
    assert time.monotonic() - started < LONGEST_S


@pytest.mark.parametrize("name", ["budget", "report", "entry"])
@fuzzing
@given(seed=SEEDS, edits=EDITS)
def test_near_valid_inputs(known: Mapping[str, Target], name: str, seed: int, edits: int) -> None:
    make, edit = NEAR_VALID[name]
    rng = Random(seed)
    made = make(rng)
    for _ in range(edits):
        made = edit(made, rng) or made
    known[name](made)


@fuzzing
@given(at=st.integers(0), bit=st.integers(0, 7), cut=st.booleans())
def test_an_entry_with_one_bit_turned_or_its_end_cut_off_is_damaged(at: int, bit: int, cut: bool) -> None:
    payload = {"weights": 12, "text": "r\u00e9ponse"}
    whole = store.encode(KEY, payload, store.now())
    assert store.decode(whole, KEY).payload == payload
    at %= len(whole) - 1  # the line end after it carries nothing
    other = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    with pytest.raises(store.Damaged):
        store.decode(other, KEY)


@fuzzing
@given(data=st.binary(max_size=500) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(known: Mapping[str, Target], data: bytes) -> None:
    for target in known.values():
        target(data)
