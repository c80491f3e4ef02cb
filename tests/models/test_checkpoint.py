"""Model directories that would run code, unpickle, lead elsewhere, or are not whole: refused before they are loaded.

Where a guard has a switch, the same directory is loaded with it, to see that there was something to guard against.
"""

import ast
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pytest_quantbudget
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.models import checkpoint, methods
from pytest_quantbudget.models.methods import _gptqmodel

pytestmark = pytest.mark.usefixtures("in_time")
CODE, PICKLES = Trust(remote_code=True), Trust(pickles=True)
Change = Callable[..., None]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the built-in model."""
    folder = tmp_path / "evil"
    shutil.copytree(BUILTIN_DIR, folder)
    return folder


@pytest.fixture
def change(model: Path) -> Change:
    """Puts entries into one of the model's JSON files; None takes one out."""

    def change(name: str = "config.json", **entries: Any) -> None:
        path = model / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({k: v for k, v in {**known, **entries}.items() if v is not None}))

    return change


def load(model: Path, trust: Trust = NO_TRUST) -> loading.Loaded:
    """The model in fp32, in this process."""
    return loading.load(Subject(str(model), None, "fp32", None, {}, None), None, trust)


def refusal(model: Path, trust: Trust = NO_TRUST) -> str:
    """Why a directory is refused: one line, the same for loading and for quantizing."""
    with pytest.raises(ValueError) as error:  # noqa: PT011
        checkpoint.check(model, trust)
    for use in (load, _gptqmodel.check_source):
        with pytest.raises(ValueError) as again:  # noqa: PT011
            use(model, trust)
        assert str(again.value) == str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


# Code


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of the test's own for the code of models that transformers imports."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.model
@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_a_models_code_runs_only_where_the_command_line_says_so(
    model: Path, change: Change, tmp_path: Path, what: str
) -> None:
    mark = tmp_path / "ran"
    # A class of its own: transformers notes on the class that it came with a model, and its own would keep the note.
    code = (
        "from pathlib import Path\n\nfrom transformers import {0}\n\n\nclass Evil({0}):\n    pass\n\n\n"
        f"Path({str(mark)!r}).touch()\n"
    )
    if what == "model":
        (model / "modeling_evil.py").write_text(code.format("Qwen3ForCausalLM"))
        change(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    else:
        (model / "other_evil.py").write_text(code.format("PreTrainedTokenizerFast"))
        change("tokenizer_config.json", auto_map={"AutoTokenizer": [None, "other_evil.Evil"]}, tokenizer_class=None)
    file = "config.json" if what == "model" else "tokenizer_config.json"
    assert refusal(model) == (
        f"evil/{file} names code that comes with the model (auto_map); only --quant-trust-remote-code lets it run"
    )
    assert not mark.exists()
    load(model, CODE)
    assert mark.exists()


# A configuration that names what torchao would call.
AO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "exec", "_data": {}}}}
CALLED = "'exec', which a library would look up and call (quantization_config)"


@pytest.mark.model
@pytest.mark.parametrize(
    ("file", "entries", "what"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "someone/else--x.Y"}}, "code that comes with the model (auto_map)"),
        ("config.json", {"text_config": {"auto_map": {"a": "b"}}}, "code that comes with the model (auto_map)"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "x.Y"}}, "code that comes with the model (auto_map)"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "a kernel to be downloaded (attn_implementation)"),
        ("config.json", {"_attn_implementation": {"": "a/b"}}, "a kernel to be downloaded (_attn_implementation)"),
        ("tokenizer_config.json", {"tokenizer_class": "evil.Tokenizer"}, "a module to be imported (tokenizer_class)"),
        ("config.json", {"quantization_config": AO}, CALLED),
        ("config.json", {"text_config": {"quantization_config": AO}}, CALLED),
    ],
)
def test_other_ways_to_name_code_are_refused(
    model: Path, change: Change, file: str, entries: dict[str, Any], what: str
) -> None:
    change(file, **entries)
    assert refusal(model) == f"evil/{file} names {what}; only --quant-trust-remote-code lets it run"
    checkpoint.check(model, CODE)


def test_gptqmodel_sees_no_tokenizer_that_it_would_import_by_itself(model: Path) -> None:
    (model / "tokenization_evil.py").write_text("raise SystemExit\n")
    for method in ("gptq-int4", "awq-int4"):
        spec = methods.spec(method)
        options = {field.name: field.default for field in spec.options}
        assert spec.quantize is not None
        with pytest.raises(ValueError, match=r"^evil holds tokenization_evil\.py.*--quant-trust-remote-code"):
            spec.quantize(model, options, ["text"], model)
    _gptqmodel.check_source(model, CODE)


def test_every_call_that_could_run_a_models_code_says_whether_it_may() -> None:
    calls = []
    for path in Path(pytest_quantbudget.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = ast.unparse(node.func)
                if name == "PeftModel.from_pretrained":
                    continue  # it takes an adapter's matrices, and has no code to trust
                if node.func.attr in ("from_pretrained", "from_config") or name == "GPTQModel.load":
                    calls.append(name)
                    stars = {ast.unparse(k.value) for k in node.keywords if k.arg is None}
                    assert "trust_remote_code" in {k.arg for k in node.keywords} or "asked(trust)" in stars, (
                        f"{path.name}:{node.lineno}"
                    )
    assert len(calls) == 16  # of which two build dummy weights
    assert methods.asked(NO_TRUST) == {"trust_remote_code": False, "use_safetensors": True}
    assert methods.asked(Trust(True, True)) == {"trust_remote_code": True, "use_safetensors": None}


# Pickles, and weights from elsewhere


class Evil:
    """An object whose unpickling creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.model
def test_pickled_weights_are_loaded_only_where_the_command_line_says_so(model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    mark = tmp_path / "ran"
    torch.save({"x": Evil(mark)}, model / "pytorch_model.bin")
    assert refusal(model) == (
        "evil holds no safetensors weights; only --quant-allow-pickle allows others, and loading those can run code"
    )
    assert not mark.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)
    assert mark.exists(), "this pickle does run code"
    torch.save(weights, model / "pytorch_model.bin")
    assert load(model, PICKLES).description.weights


@pytest.mark.model
def test_without_any_weights_allowing_pickles_is_no_advice(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert refusal(model, PICKLES) == "evil holds no weights"


@pytest.mark.model
def test_safetensors_that_are_not_the_models_hide_no_pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"")
    assert refusal(model).startswith("evil holds no safetensors weights")


@pytest.mark.model
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["pytorch_model.bin"], "names 'pytorch_model.bin', which is not a *.safetensors file"),
        (["../model.safetensors"], "names '../model.safetensors', which is not a file of its own directory"),
        (["/tmp/model.safetensors"], "names '/tmp/model.safetensors', which is not a file of its own directory"),
        (["a.safetensors", "b.safetensors"], "names 'b.safetensors', which is not there"),
        ([7], "has no weight_map from names to files"),
        ([], "has no weight_map from names to files"),
    ],
)
def test_an_index_names_whole_safetensors_files_of_its_own_directory(
    model: Path, change: Change, files: list[Any], message: str
) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "pytorch_model.bin").write_bytes(b"")
    change("model.safetensors.index.json", weight_map={f"w{i}": name for i, name in enumerate(files)})
    assert refusal(model) == f"evil/model.safetensors.index.json {message}"


def test_shards_are_counted_and_measured_without_others_that_lie_there(model: Path, change: Change) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    shutil.copy(model / "a.safetensors", model / "consolidated.safetensors")
    change("model.safetensors.index.json", weight_map={"x": "a.safetensors", "y": "a.safetensors"})
    checkpoint.check(model, NO_TRUST)
    assert checkpoint.parameters(model) == checkpoint.parameters(BUILTIN_DIR) > 500_000
    assert checkpoint.size(model) == (model / "a.safetensors").stat().st_size


@pytest.mark.model
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter_model.bin", "evil/config.json: transformers_weights names no safetensors file"),
        ("../x.safetensors", "evil/config.json names '../x.safetensors', which is not a file of its own directory"),
        ("none.safetensors", "evil holds no safetensors weights"),
    ],
)
def test_a_configuration_cannot_send_transformers_to_other_weights(
    model: Path, change: Change, name: str, message: str
) -> None:
    change(transformers_weights=name)
    assert refusal(model).startswith(message)
    change(transformers_weights="model.safetensors")
    checkpoint.check(model, NO_TRUST)


@pytest.mark.model
def test_an_adapter_brings_in_no_base_model(model: Path, change: Change) -> None:
    change("adapter_config.json", base_model_name_or_path="someone/else")
    why = "it is a method's `adapter`, and its base model the `model`"
    assert refusal(model) == f"evil holds an adapter (adapter_config.json): {why}"


@pytest.mark.model
def test_pipes_and_devices_are_no_weights(model: Path) -> None:
    os.mkfifo(model / "vocab.txt")
    assert refusal(model) == "evil/vocab.txt is neither a regular file nor a directory"
    (model / "vocab.txt").unlink()
    (model / "tokenizer.model").symlink_to("/dev/zero")
    assert refusal(model) == "evil/tokenizer.model is neither a regular file nor a directory"


# What is read by hand


def tensor(shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    """An entry of a safetensors header."""
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


def packed(header: object, data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


NONSENSE = "its header is not valid for the tensor 'x'"


@pytest.mark.model
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated: it holds 0 bytes of at least 8"),
        (b"\xff" * 8, "is not a safetensors file: its header would take 18,446,744,073,709,551,615 bytes"),
        (struct.pack("<Q", 2**63), "is not a safetensors file: its header would take 9,223,372,036,854,775,808 bytes"),
        (struct.pack("<Q", 10_000) + b"{}", "is truncated: it holds 10 bytes of at least 10,008"),
        (packed(b"not JSON"), "has no header of a safetensors file"),
        (packed([1]), "has no header of a safetensors file"),
        (packed(b"[" * 100_000), "has no header of a safetensors file"),
        (packed(b'{"x": ' + b"1" * 10_000 + b"}"), "has no header of a safetensors file"),
        (packed({"x": 1}), NONSENSE),
        (packed({"x": {}}), NONSENSE),
        (packed({"x": tensor(shape=[-2])}), NONSENSE),
        (packed({"x": tensor(shape=[True])}), NONSENSE),
        (packed({"x": tensor(shape=[2**70])}), NONSENSE),
        (packed({"x": tensor(shape=[2**40, 2**40])}), NONSENSE),
        (packed({"x": tensor(shape=[1] * 1000)}), NONSENSE),
        (packed({"x": tensor(offsets=[8, 0])}), NONSENSE),
        (packed({"x": tensor(offsets=[0])}), NONSENSE),
        (packed({"x": tensor(), "y": tensor()}), "its tensors overlap or leave gaps"),
        (packed({"x": tensor(offsets=[8, 16])}), "its tensors overlap or leave gaps"),
        (packed({"x": tensor()}, b"\0" * 7), "is truncated: it holds "),
        (packed({"x": tensor()}, b"\0" * 9), "holds "),
    ],
    ids=[
        *["empty", "16 EiB of header", "8 EiB of header", "no header", "no JSON", "a list", "nested", "digits"],
        *["number", "no entry", "negative", "a flag", "large side", "large product", "many sides"],
        *["backwards", "one offset", "overlap", "gap", "cut off", "too long"],
    ],
)
def test_a_broken_safetensors_file_is_named_before_it_is_loaded(model: Path, content: bytes, message: str) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert refusal(model).removeprefix("evil/model.safetensors").lstrip(": ").startswith(message)


def test_of_weights_only_the_header_is_read(model: Path) -> None:
    size = 10**11
    with (model / "model.safetensors").open("wb") as file:
        file.write(packed({"x": tensor([size // 4], [0, size])}, b""))
        file.truncate(file.tell() + size)
    checkpoint.check(model, NO_TRUST)
    assert checkpoint.parameters(model) == size // 4


@pytest.mark.model
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"[]", b"{", b"\xff", b"[" * 100_000, b'{"x": ' + b"1" * 10_000 + b"}"],
    ids=["list", "cut off", "no text", "nested", "digits"],
)
def test_a_configuration_is_a_json_object(model: Path, name: str, content: bytes) -> None:
    (model / name).write_bytes(content)
    assert refusal(model) == f"evil/{name} is not a JSON object"


@pytest.mark.model
def test_a_configuration_is_there_and_of_bounded_size(model: Path) -> None:
    with (model / "config.json").open("wb") as file:
        file.truncate(10**12)
    assert refusal(model) == "evil/config.json is 1,000,000,000,000 bytes long; at most 16,000,000 are read"
    (model / "config.json").unlink()
    assert refusal(model) == "evil/config.json cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (None, None),
        ({}, None),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "an unknown method"),
    ],
)
def test_a_quantized_model_cannot_pass_for_a_dense_one(
    model: Path, change: Change, entry: dict[str, Any] | None, found: str | None
) -> None:
    change(quantization_config=entry)
    assert checkpoint.format_of(model) == found


def test_formats_of_older_tools_are_known_and_nonsense_is_named(model: Path, change: Change) -> None:
    change("quantize_config.json", bits=4)
    assert checkpoint.format_of(model) == "gptq"
    change(quantization_config=[4])
    with pytest.raises(ValueError, match=r"^evil/config\.json: quantization_config is not an object$"):
        checkpoint.format_of(model)
