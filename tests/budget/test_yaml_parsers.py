"""PyYAML's two parsers give the same: the same values on the same lines, or the same mistakes."""

from pathlib import Path
from random import Random

import fuzz_inputs
import pytest

from pytest_quantbudget.budget import yaml
from pytest_quantbudget.core.problems import BudgetError

TESTS = Path(__file__).parents[1]
FILES = [*sorted((TESTS / "corpus" / "budget").iterdir()), *sorted((TESTS.parent / "budgets").rglob("*.yaml"))]
# What stands at an unusual place, or is written in an unusual way.
TEXTS = {
    "nothing": "",
    "comment": "# nothing\n",
    "byte order mark": "\ufeffmodel: m\nbaseline: fp16\n",
    "line ends": "model: m\r\nmethods:\r  nf4:\u0085    budget:\u2028      max_vram: 7 GiB\n",
    "no value": "a:\nb:\n\n\nc: 1\n",
    "no item": "a:\n  -\n\n  - b\n  -\n",
    "key apart from its value": "a:\n\n  # text\n  1\n? b\n\n:\n\n  2\n",
    "flow": "a: {b: [1,\n  2], c\n: d, 'e':f}\n",
    "pairs in a list": "a: [b: c, d: e]\n",
    "blocks": "a: |\n  one\n\n  two\nb: >-\n  three\n  four\n\nc: 'five\n\n  six'\n",
    "anchors": "a: &a {x: 1}\nb: &b\n  <<: *a\n  y: [*a]\nc: {<<: [*a, *b], x: 2}\n",
    "tags": "a: !!str 1\nb: !!int '2'\nc: !!merge d\n!!str e: f\n",
    "directive": "%YAML 1.1\n---\na: 1\n...\n",
    "later version": "%YAML 1.9\n---\na: 1\n",
    "tag directive": "%TAG ! tag:yaml.org,2002:\n---\na: !str 1\n",
    "escapes": 'a: "\\x41\\u0042\\U00000043\\n\\\n  d"\n',
    "start alone": "---\n",
    "comment behind a block's mark": "a: |#\n",
    "tab in a line": "a:\t1\nb: [\t2,\t3\t]\t# four\n",
    "tab before a key": "a:\n\tb: 1\n",
    "colon without a blank": "a:1\n",
    "long key": f"{'a' * 2000}: 1\n",
    "letters beyond 16 bits": "a: \U0001f600\n\U0001f600: b\n",
    "private letters": "a: \ue000\ufffd\n",
    "no character": "a: \ufffe\n",
    "control character": "a: 1\nb: \x07\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "two keys": "a: 1\nb: 2\na: 3\n",
    "open list": "a: [1, 2\n",
    "reserved": "a: @b\n",
}


def outcome(text: str) -> str:
    """What a text holds, each value with its line; or the mistakes in it."""
    try:
        return repr(yaml.parse(text, Path("b.yaml")))
    except BudgetError as error:
        return str(error)


def check_both(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a text with either parser."""
    fast = outcome(text)
    with monkeypatch.context() as patch:
        patch.setattr(yaml, "_CLoader", None)
        assert outcome(text) == fast


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_both(path.read_bytes().decode("utf-8", "replace"), monkeypatch)


@pytest.mark.parametrize("name", TEXTS)
def test_a_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_both(TEXTS[name], monkeypatch)


@pytest.mark.parametrize("seed", range(8))
def test_near_valid_texts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(seed)
    data = fuzz_inputs.budget_files(rng)
    for _ in range(10):
        data = fuzz_inputs.edit_budget(data, rng) or data
        check_both(data.decode("utf-8", "replace"), monkeypatch)


@pytest.mark.skipif(yaml._CLoader is None, reason="PyYAML was built without libyaml")
def test_a_sound_text_is_not_read_by_the_slow_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "_PythonLoader")
    assert yaml.parse("a: &a {b: 1}\nc: {<<: *a}\n", Path("b.yaml")).plain == {"a": {"b": 1}, "c": {"b": 1}}
