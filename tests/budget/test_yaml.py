"""Reading YAML with line numbers: what is refused, what `extends` merges, and that no file takes the reader down."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantbudget.budget import yaml
from pytest_quantbudget.budget.yaml import read_extended, read_yaml
from pytest_quantbudget.core.files import SHIPPED_BUDGETS
from pytest_quantbudget.core.problems import BudgetError, Marked

Write = Callable[..., Path]


@pytest.fixture(autouse=True, params=["libyaml", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read or refused, is so with either of PyYAML's parsers."""
    if request.param == "python":
        monkeypatch.setattr(yaml, "_CLoader", None)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file into an empty folder."""

    def write(text: str | bytes, name: str = "b.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def error_of(path: Path, reader: Callable[[Path], Marked] = read_yaml) -> str:
    """The first problem, from its line number on: `3: message` (no number for the file as a whole)."""
    with pytest.raises(BudgetError) as error:
        reader(path)
    first = str(error.value).splitlines()[0]
    assert path.name in first or reader is read_extended
    return first.partition("yaml:")[2].strip()


def lines_of(node: Marked, prefix: str = "") -> dict[str, int]:
    found = {}
    for key, value in node.entries.items():
        found[f"{prefix}{key}"] = value.line
        found |= lines_of(value, f"{prefix}{key}.")
    return found


def test_every_entry_knows_the_line_of_its_key(write: Write) -> None:
    root = read_yaml(
        write("# head\nmodel: m\n\nmethods:\n  nf4:\n    budget: {max_vram: 7 GiB,\n      max_weights: 6 GiB}\n")
    )
    assert lines_of(root) == {
        "model": 2,
        "methods": 4,
        "methods.nf4": 5,
        "methods.nf4.budget": 6,
        "methods.nf4.budget.max_vram": 6,
        "methods.nf4.budget.max_weights": 7,
    }


def test_items_of_a_list_know_their_lines(write: Write) -> None:
    root = read_yaml(write("marks:\n  - slow\n  - gpu\n"))
    assert [(item.value, item.line) for item in root.entries["marks"].items] == [("slow", 2), ("gpu", 3)]


def test_values_are_those_of_safe_load_but_for_powers_of_ten(write: Write) -> None:
    text = "a: [1, 2.5, true, null, text]\nb: [1e3, -1E-4, .5e1, 1_0.e+2, 1.0e3]\nc: 0x10\nd: 'quoted: text'\n1: one\n"
    expected = {
        "a": [1, 2.5, True, None, "text"],
        "b": [1000.0, -0.0001, 5.0, 1000.0, 1000.0],  # text in YAML 1.1, which wants a point and a sign
        "c": 16,
        "d": "quoted: text",
        "1": "one",
    }
    assert read_yaml(write(text)).plain == expected


@pytest.mark.parametrize("ending", ["\r\n", "\n"], ids=["crlf", "lf"])
def test_line_ends_and_a_byte_order_mark_change_nothing(write: Write, ending: str) -> None:
    root = read_yaml(write(f"\ufeffmodel: m{ending}baseline: fp16{ending}"))
    assert lines_of(root) == {"model": 1, "baseline": 2}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "1: is empty; a budget needs at least `model` and `methods`"),
        ("# only a comment\n", "1: is empty"),
        ("a: 1\nb: 2\na: 3\n", "3: 'a' is written here and on line 1; remove one of them"),
        ("a: 1\nb:\n  c: 1\n  c: 1\n", "4: 'c' is written here and on line 3"),
        ("a:\n\tb: 1\n", "2: a tab cannot indent YAML; use spaces"),
        ("a: 1\n b: 2\n", "2: mapping values are not allowed here"),
        ("a: [1, 2\n", "2: expected ',' or ']', but got"),
        ("a: *nowhere\n", "1: found undefined alias 'nowhere'"),
        ("? [a, b]\n: 1\n", "1: a key must be plain text"),
        ("a: 1\n---\nb: 2\n", "2: but found another document"),
        ("a: 1\nb: 2026-13-45\n", "2: '2026-13-45' is not a valid timestamp"),
        ("a: !!bool maybe\n", "1: 'maybe' is not a valid bool"),
        ("a: !!int ''\n", "1: '' is not a valid int"),
        (
            "a: 1\nb: !!python/object/apply:os.getcwd []\n",
            "2: the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'",
        ),
        ("a: !!python/name:os.system\n", "1: could not determine a constructor for the tag"),
        ("a: !secret {b: 1}\n", "1: the tag '!secret' is not allowed in a budget"),
        ("a: 1\nb: \x07\n", "2: character '\\x07' is not allowed in YAML"),
        (b"a: 1\nb: \xff\n", "2: is not UTF-8 text"),
        (b"\xff\xfea\x00:\x00", "1: is not UTF-8 text"),
        ("a: &a [*a]\n", "1: more than 16 levels or 20,000 keys and values"),
        (f"a:\n  {'[' * 30}{']' * 30}\n", "2: more than 16 levels or 20,000 keys and values"),
        ("[" * 1500 + "]" * 1500, "1: more than 16 levels or 20,000 keys and values"),
        ("a: " + "x" * 200_000, "1: is 200,003 bytes long; a budget has at most 200,000"),
    ],
    ids=[
        *["empty", "comment", "duplicate", "nested duplicate", "tab", "indent", "open list", "undefined alias"],
        *["list as key", "two documents", "date", "bool", "int", "python object", "python name", "own tag"],
        *["control character", "latin-1", "utf-16", "recursive alias", "deep", "very deep", "too long"],
    ],
)
def test_what_is_no_budget_is_refused_with_its_line(write: Write, text: str | bytes, error: str) -> None:
    assert error_of(write(text)).startswith(error)


@pytest.mark.parametrize("value", ["010", "+0_7", "08", "00", "1:30", "-1:30:00.5", "190:20:30"])
def test_a_number_that_versions_of_yaml_read_differently_is_refused(write: Write, value: str) -> None:
    assert error_of(write(f"a: 1\nb: [{value}]\n")).startswith(f"2: {value!r} is ambiguous: ")
    assert read_yaml(write(f"a: '{value}'\n")).plain == {"a": value}


@pytest.mark.parametrize("value", ["0", "-0", "0.5", "0x1F", "10:75", "a:30", "2026-01-02", "1e", "e3", "0e0"])
def test_what_is_not_ambiguous_is_not_refused(write: Write, value: str) -> None:
    read_yaml(write(f"a: {value}\n"))


def test_a_file_that_is_missing_says_so(tmp_path: Path) -> None:
    assert error_of(tmp_path / "none.yaml") == "cannot be read: No such file or directory"


def test_aliases_that_multiply_are_stopped(write: Write) -> None:
    laughs = "a: &a [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert "more than 16 levels or 20,000 keys and values" in error_of(write(laughs))


def test_merges_that_multiply_stay_as_small_as_what_they_say(write: Write) -> None:
    merges = "a: &a {x: 1, y: 2}\n" + "".join(
        f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert read_yaml(write(merges)).entries["i"].plain == {"x": 1, "y": 2}


def test_an_alias_repeats_what_it_names(write: Write) -> None:
    root = read_yaml(write("a: &a {x: 1}\nb: *a\n"))
    assert root.plain == {"a": {"x": 1}, "b": {"x": 1}}


def test_a_merge_key_takes_entries_over_and_own_ones_win(write: Write) -> None:
    root = read_yaml(write("a: &a {x: 1, y: 2}\nb: &b\n  <<: *a\n  y: 3\nc: *b\nd: {<<: *b, z: 4}\n"))
    assert root.plain == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 3},
        "d": {"x": 1, "y": 3, "z": 4},
    }
    assert (root.entries["b"].entries["x"].line, root.entries["b"].entries["y"].line) == (1, 4)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: &a {x: 1, x: 2}\nb: {<<: *a}\n", "1: 'x' is written here and on line 1"),
        ("a: &a\n  <<: {x: 1}\n  <<: {y: 1}\n", "3: '<<' is written here and on line 2"),
        ("a: &a [1]\nb:\n  <<: *a\n", "1: expected a mapping for merging, but found scalar"),
    ],
    ids=["duplicate in what is merged", "two merge keys", "merged list"],
)
def test_a_merge_hides_no_mistake(write: Write, text: str, error: str) -> None:
    assert error_of(write(text)).startswith(error)


def test_a_mapping_merged_into_itself_ends(write: Write) -> None:
    assert read_yaml(write("a: &a {<<: *a, x: 1}\n")).plain == {"a": {"x": 1}}


def test_extends_merges_key_by_key_and_replaces_the_rest(write: Write) -> None:
    write("model: m\nworkload: {repeats: 5, batch_size: 2}\nmethods:\n  nf4: {marks: [slow, gpu]}\n", "base.yaml")
    root = read_extended(write("extends: base.yaml\nworkload: {repeats: 3}\nmethods:\n  nf4: {marks: [slow]}\n"))
    assert root.plain == {
        "extends": "base.yaml",
        "model": "m",
        "workload": {"repeats": 3, "batch_size": 2},
        "methods": {"nf4": {"marks": ["slow"]}},
    }


def test_an_inherited_entry_keeps_its_file_and_line(write: Write) -> None:
    base = write("# base\nmodel: m\n", "base.yaml")
    child = write("extends: base.yaml\nbaseline: fp16\n")
    entries = read_extended(child).entries
    assert [(entries[k].file, entries[k].line) for k in ("model", "baseline")] == [(base, 2), (child, 2)]


def test_null_takes_an_inherited_entry_out(write: Write) -> None:
    write("model: m\nmethods: {nf4: {}, int8: {}}\n", "base.yaml")
    root = read_extended(write("extends: base.yaml\nmethods: {nf4: null}\n"))
    assert root.entries["methods"].plain == {"int8": {}}


def test_extends_reaches_through_several_files_and_folders(write: Write, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write("model: m\nbaseline: fp32\n", "root.yaml")
    write("extends: ../root.yaml\nbaseline: fp16\n", "sub/middle.yaml")
    assert read_extended(write("extends: sub/middle.yaml\n")).plain == {
        "extends": "sub/middle.yaml",
        "model": "m",
        "baseline": "fp16",
    }


def test_extends_finds_a_shipped_budget_by_its_name(write: Write, tmp_path: Path) -> None:
    child = write("extends: qwen3_8b.yaml\nmodel: acme/bot\n", "own.yaml")
    named = read_extended(child).entries
    assert (named["model"].value, named["baseline"].value) == ("acme/bot", "fp16")
    assert named["baseline"].file == SHIPPED_BUDGETS / "qwen3_8b.yaml"
    # A file of the same name that extends it means the shipped one, and so does whoever extends that file.
    write("extends: qwen3_8b.yaml\nbaseline: nf4\n", "qwen3_8b.yaml")
    assert read_extended(tmp_path / "qwen3_8b.yaml").entries["model"].value == "Qwen/Qwen3-8B"
    assert read_extended(child).entries["baseline"].value == "nf4"


def test_a_budget_beside_comes_before_a_shipped_one(write: Write, tmp_path: Path) -> None:
    write("model: m\n", "qwen3_8b.yaml")
    assert read_extended(write("extends: qwen3_8b.yaml\n")).entries["model"].value == "m"
    (tmp_path / "sub").mkdir()
    assert "not a file" in error_of(write("extends: sub/qwen3_8b.yaml\n"), read_extended)


@pytest.mark.parametrize(
    ("child", "kept"),
    [
        ("extends: base.yaml\nmodel: other\n", False),
        ("extends: base.yaml\nmodel: m\n", True),
        ("extends: base.yaml\n", True),
    ],
    ids=["another model", "the same model", "no model"],
)
def test_revision_and_checkpoints_stay_with_the_weights_they_name(write: Write, child: str, kept: bool) -> None:
    write("model: m\nrevision: abc\nmethods: {awq-int4: {checkpoint: m-awq, marks: [slow]}}\n", "base.yaml")
    root = read_extended(write(child))
    assert ("revision" in root.entries, "checkpoint" in root.entries["methods"].entries["awq-int4"].entries) == (
        kept,
        kept,
    )
    assert root.entries["methods"].entries["awq-int4"].entries["marks"].plain == ["slow"]


def test_a_child_may_name_its_own_revision_and_checkpoint(write: Write) -> None:
    write("model: m\nrevision: abc\n", "base.yaml")
    root = read_extended(write("extends: base.yaml\nmodel: other\nrevision: def\n"))
    assert root.entries["revision"].value == "def"


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"b": "extends: b.yaml\n"}, "1: `extends` runs in a circle: b.yaml -> b.yaml"),
        (
            {"b": "model: m\nextends: c.yaml\n", "c": "extends: b.yaml\n"},
            "1: `extends` runs in a circle: b.yaml -> c.yaml -> b.yaml",
        ),
        (
            {"b": "\nextends: bsae.yaml\n", "base": "model: m\n"},
            "2: `extends` names 'bsae.yaml', which is not a file; there is base.yaml; the package ships builtin.yaml, ",
        ),
        ({"b": "extends: none.yaml\n"}, "1: `extends` names 'none.yaml', which is not a file"),
        ({"b": "extends: .\n"}, "1: `extends` names '.', which is not a file"),
        ({"b": f"extends: {'a' * 300}\n"}, "1: `extends` names 'aaa"),
        ({"b": 'extends: "a\\0b"\n'}, "1: `extends` names 'a\\x00b', which is not a file"),
        ({"b": "extends: ~nobody-here/b.yaml\n"}, "1: `extends` names '~nobody-here/b.yaml', which is not a file"),
        ({"b": "extends: [c.yaml]\n"}, "1: `extends` names one budget file"),
        ({"b": "extends: c.yaml\n", "c": "model: m\nmodel: n\n"}, "2: 'model' is written here and on line 1"),
    ],
    ids=["itself", "circle", "misspelt", "missing", "folder", "long", "null byte", "nobody", "list", "broken parent"],
)
def test_extends_that_leads_nowhere_is_refused(write: Write, files: dict[str, str], error: str) -> None:
    for name, text in files.items():
        write(text, f"{name}.yaml")
    assert error_of(write(files["b"]), read_extended).startswith(error)


def test_the_error_quotes_the_users_line(write: Write) -> None:
    with pytest.raises(BudgetError) as error:
        read_yaml(write("model: m\nb:   'two\x85lines'\nmodel: n # second\n"))
    assert str(error.value).splitlines()[1:] == ["    model: n # second"]  # U+0085 ends a line, in YAML as here


@pytest.mark.parametrize(
    ("text", "excerpt"),
    [
        ("{a: 1, a: 22}", ["{a: 1, a: 22}", "       ^^^^^"]),
        ("x: {b: {a: 1, a: 22}, c: 3}  # why", ["x: {b: {a: 1, a: 22}, c: 3}  # why", "              ^^^^^"]),
        ("x: {\n  a: 1,\n  a: 22, b: 3}", ["a: 22, b: 3}", "^^^^^"]),
        ("a: 1\na: 22", ["a: 22"]),
        ("a: 1\na: 22  # b", ["a: 22  # b"]),
        ("a: 1\na: {b: 22}", ["a: {b: 22}", "^"]),
        ("x: {a: 1, a: '2 2'}", ["x: {a: 1, a: '2 2'}", "          ^^^^^^^^"]),
        ("x: {a: 1, a: 2\n  2}", ["x: {a: 1, a: 2", "          ^"]),
        ("x: &y 1\nz: {a: 1, a: *y}", ["z: {a: 1, a: *y}", "          ^"]),
        ("数学: {数: 1, 数: 22}", ["数学: {数: 1, 数: 22}", "              ^^^^^^"]),
    ],
)
def test_on_a_line_with_more_on_it_the_place_is_marked(write: Write, text: str, excerpt: list[str]) -> None:
    with pytest.raises(BudgetError) as error:
        read_yaml(write(text + "\n"))
    assert error.value.problems[0].excerpt == excerpt


def test_of_a_long_line_the_part_is_shown_in_which_the_place_is(write: Write) -> None:
    others = ", ".join(f"k{i}: 1" for i in range(50))
    with pytest.raises(BudgetError) as error:
        read_yaml(write(f"x: {{{others}, k0: 22, {others}}}\n"))
    shown, under = error.value.problems[0].excerpt
    assert (len(shown), shown[0], shown[40:47], shown[-1], under) == (96, "…", "k0: 22,", "…", " " * 40 + "^^^^^^")


def test_a_quoted_line_is_short_and_steers_no_terminal(write: Write) -> None:
    with pytest.raises(BudgetError) as error:
        read_yaml(write(f"a: 1\n'a': \u202e{'x' * 500}\n"))
    quoted = str(error.value).splitlines()[1]
    assert quoted == f"    'a': \ufffd{'x' * 194}"


def test_a_file_is_named_as_it_would_be_typed_from_here(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write("")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BudgetError, match=r"^b\.yaml:1: is empty"):
        read_yaml(path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(BudgetError, match=f"^{re.escape(str(path))}:1: is empty"):
        read_yaml(path)
