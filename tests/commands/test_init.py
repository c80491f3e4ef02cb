"""`init`: the budgets that it writes are read, fit the GPU, and hold whatever names there are."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantbudget.__main__ import main
from pytest_quantbudget.budget.first import text
from pytest_quantbudget.budget.first.choice import BY_USE
from pytest_quantbudget.budget.reader import budget_of, load_budget
from pytest_quantbudget.budget.yaml import parse
from pytest_quantbudget.core.budget import Budget
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.models import methods

Init = Callable[..., tuple[int, str, str]]


@pytest.fixture
def init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Init:
    """Calls `init` in an empty folder: its exit code, and what it says on both streams."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["init", *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def written(name: str) -> Budget:
    return load_budget(Path(name), permissions=Permissions(everything=True))


def names(budget: Budget) -> dict[str, list[str]]:
    return {method.name: [limit.name for limit in method.limits] for method in budget.methods}


def model(folder: Path, **more: object) -> Path:
    """A directory with the configuration of a model of 8 billion parameters, and no weights."""
    shutil.copytree(Path(methods.__file__).parents[1] / "configs" / "Qwen--Qwen3-8B", folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | more))
    return folder


def test_the_built_in_model_is_asked_what_it_has_learned(init: Init) -> None:
    code, said, _ = init("builtin")
    assert code == 0
    assert said.startswith("wrote builtin.yaml: 5 methods, 10 limits, 10 values that read `auto`\n")
    assert "  pytest --quant-budget builtin.yaml --quant-update\n" in said
    budget = written("builtin.yaml")
    assert budget.model == str(BUILTIN_DIR)
    assert names(budget)["fp32"] == ["min_wordmath", "max_weights"]
    assert names(budget)["awq-int4"] == ["max_wordmath_drop", "max_weights"]
    assert main(["check", "builtin.yaml"]) == 0


def test_a_copy_of_it_knows_the_same(init: Init) -> None:
    shutil.copytree(BUILTIN_DIR, "tuned")
    assert init("tuned", "--use", "dev")[0] == 0
    budget = written("tuned.yaml")
    assert budget.model == str(Path("tuned").resolve())
    assert [use.name for use in budget.uses] == ["development"]
    assert budget.totals == {"wordmath": 100}
    assert list(names(budget)) == ["fp32", "int8", "nf4"]


def test_a_hub_model_is_written_from_its_configuration_alone(init: Init) -> None:
    code, _, _ = init("Qwen/Qwen3-8B", "--gpu", "L4", "--revision", "main", "-o", "budgets/q.yaml")
    assert code == 0
    budget = written("budgets/q.yaml")
    assert names(budget) == {
        "bf16": ["min_gsm8k", "max_vram", "min_tokens_per_s"],
        "int8": ["max_gsm8k_drop", "max_vram", "min_tokens_per_s"],
        "nf4": ["max_gsm8k_drop", "max_vram", "min_tokens_per_s"],
    }
    (speed,) = (limit for limit in budget.method("nf4").limits if limit.name == "min_tokens_per_s")
    assert [target.pattern for target in speed.targets] == ["NVIDIA L4*"]
    assert budget.method("nf4").subject.revision == "main"
    assert budget.method("bf16").gpu is not None


@pytest.mark.parametrize("use", [use for use in BY_USE if use])
@pytest.mark.parametrize("where", ["here", "L4", "T4", "6 GiB"])
def test_every_use_gives_a_budget_that_is_read(init: Init, use: str, where: str) -> None:
    gpu = [] if where == "here" else ["--gpu", where]
    code, _, error = init("Qwen/Qwen3-8B", "--use", use, *gpu, "-o", "q.yaml")
    if where == "6 GiB" and use != "edge":
        # nf4 takes 6.4 GiB.
        assert code == 4
        assert "no method is left: bf16 takes 15.9 GiB of a GPU, and does not fit a GPU with 6.00 GiB" in error
        return
    assert (code, error) == (0, "")
    assert main(["check", "q.yaml"]) == 0
    budget = written("q.yaml")
    assert [each.name for each in budget.uses] == [use]
    assert budget.base is not None
    assert budget.base.limits


def test_what_does_not_fit_is_left_out_with_its_size(init: Init) -> None:
    code, said, _ = init("Qwen/Qwen3-8B", "--gpu", "RTX 4060")
    assert code == 0
    assert "left out: bf16: takes 15.9 GiB of a GPU, and does not fit NVIDIA GeForce RTX 4060 (8.00 GiB)\n" in said
    budget = written("qwen3-8b.yaml")
    assert (budget.baseline, list(names(budget))) == ("nf4", ["nf4"])
    assert "the baseline, because bf16 does not fit" in Path("qwen3-8b.yaml").read_text()


def test_of_several_gpus_each_has_its_speed_and_a_method_has_to_fit_one(init: Init) -> None:
    assert init("Qwen/Qwen3-8B", "--gpu", "T4", "H100", "--use", "production")[0] == 0
    budget = written("qwen3-8b.yaml")
    # A T4 computes in no bfloat16.
    assert list(names(budget)) == ["fp16", "nf4"]
    assert budget.method("nf4").subject.options["compute_dtype"] == "float16"
    (speed,) = (limit for limit in budget.method("nf4").limits if limit.name == "max_ttft")
    assert [target.pattern for target in speed.targets] == ["Tesla T4*", "NVIDIA H100*"]
    assert "# does not fit Tesla T4 (15.0 GiB)" in Path("qwen3-8b.yaml").read_text()


def test_named_methods_are_written_whether_they_fit_or_not(init: Init) -> None:
    assert init("Qwen/Qwen3-8B", "--gpu", "4 GiB", "--methods", "fp16,nf4")[0] == 0
    assert list(names(written("qwen3-8b.yaml"))) == ["fp16", "nf4"]
    assert "# does not fit a GPU with 4.00 GiB" in Path("qwen3-8b.yaml").read_text()


def test_own_questions_texts_checkpoints_and_adapters_are_named(init: Init) -> None:
    shutil.copy(BUILTIN_DIR / "questions.jsonl", "Our Questions.jsonl")
    shutil.copy(BUILTIN_DIR / "calibration.jsonl", "texts.jsonl")
    model(Path("m"))
    Path("lora").mkdir()
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "base_model_name_or_path": "acme/base"}
    Path("lora/adapter_config.json").write_text(json.dumps(told))
    more = ["--questions", "Our Questions.jsonl", "--calibration", "texts.jsonl", "--adapter", "lora", "--gpu", "L4"]
    code, _, error = init("m", *more, "--checkpoint", "Qwen/Qwen3-8B-AWQ", "q8.gguf", "-o", "b/m.yaml")
    assert (code, error) == (4, "ERROR: --checkpoint 'q8.gguf' is neither a file, nor a directory, nor a hub id\n")
    Path("q8.gguf").write_bytes(b"")
    code, _, error = init("m", *more, "--checkpoint", "Qwen/Qwen3-8B-AWQ", "q8.gguf", "-o", "b/m.yaml")
    assert (code, error) == (0, "")
    budget = written("b/m.yaml")
    assert list(budget.tasks) == ["our_questions"]
    assert list(names(budget)) == ["bf16", "int8", "nf4", "gptq-int4", "awq-int4", "Qwen3-8B-AWQ", "q8"]
    assert budget.method("nf4").subject.adapter is not None
    assert budget.method("gptq-int4").subject.calibration == str(Path("texts.jsonl").resolve())
    assert budget.method("q8").subject.engine == "llama.cpp"
    assert budget.method("Qwen3-8B-AWQ").subject.checkpoint == "Qwen/Qwen3-8B-AWQ"


def test_a_model_that_is_quantized_is_measured_as_it_is(init: Init) -> None:
    packed = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}
    model(Path("packed"), quantization_config=packed)
    assert init("packed", "--gpu", "L4", "--use", "production")[0] == 0
    budget = written("packed.yaml")
    assert budget.baseline is None
    ((name, limits),) = names(budget).items()
    assert limits == ["min_gsm8k", "max_vram", "min_tokens_per_s", "max_ttft"]
    assert budget.method(name).subject.checkpoint == str(Path("packed").resolve())
    for more in (["--methods", "nf4"], ["--use", "qlora"]):
        code, _, error = init("packed", *more, "-o", "other.yaml")
        assert code == 4
        assert error.startswith("ERROR: the model is already quantized (gptq int4 g128)")
        assert "--checkpoint" in error


def test_a_ready_checkpoint_has_the_limits_that_its_engine_can_be_judged_on(init: Init) -> None:
    weights = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 128}
    told = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    model(Path("w4a16"), quantization_config=told)
    model(Path("fp4"), quantization_config={"quant_method": "modelopt", "quant_algo": "NVFP4"})
    model(Path("awq"), quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})
    more = ["--gpu", "L4", "--use", "production", "--checkpoint", "w4a16", "fp4", "awq", "Qwen/Qwen3-8B-AWQ"]
    assert init("Qwen/Qwen3-8B", *more)[0] == 0
    budget = written("qwen3-8b.yaml")
    found = names(budget)
    engines = {name: budget.method(name).subject.engine for name in found}
    # transformers writes the weights of one out, and does not know another: vLLM runs that.
    assert (found["w4a16"], engines["w4a16"]) == (["max_gsm8k_drop"], "transformers")
    assert (engines["fp4"], found["fp4"][:2]) == ("vllm", ["max_gsm8k_drop", "max_weights"])
    assert (engines["awq"], found["awq"][:2]) == ("transformers", ["max_gsm8k_drop", "max_vram"])
    assert found["Qwen3-8B-AWQ"] == found["awq"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lora"], "lora holds an adapter (adapter_config.json), trained on acme/base: name its base model, as in `"),
        (["x.gguf"], "x.gguf is a GGUF file, one way to run a model: name the model that it was made of, as in `"),
        (
            ["builtin", "--checkpoint", "lora"],
            "--checkpoint lora: it holds an adapter (adapter_config.json): that is --a",
        ),
        (["builtin", "--checkpoint", "empty"], "--checkpoint empty: it holds no model: there is no config.json"),
        (["files"], "y.gguf is a GGUF file, one way to run a model"),
        (["empty"], "empty holds no model: there is no config.json"),
        (["./emtpy"], "'./emtpy' is neither a directory nor a hub id such as Qwen/Qwen3-8B; did you mean 'empty'?"),
        (["acme/none"], "no configuration of acme/none is on this machine: "),
        (["encoder"], "encoder is no causal language model (BertForMaskedLM), and only those are measured"),
        (["builtin", "--methods", "nf5"], "--methods: there is no method 'nf5'; did you mean 'nf4'?"),
        (["builtin", "--methods", "served"], "--methods served: a server is no model that could be loaded"),
        (["Qwen/Qwen3-8B", "--methods", "gptq-int4"], "gptq-int4: made on texts of yours: --calibration FILE"),
        (["builtin", "--gpu", "L5"], "--gpu L5: no such GPU is known here; did you mean 'l4'?"),
        (["builtin", "--gpu", "A100"], "--gpu A100: 'NVIDIA A100 40GB' or 'NVIDIA A100 80GB'?"),
        (["builtin", "--gpu", "24"], "24 has no unit, and GB and GiB differ by 7 %"),
        (["builtin", "--revision", "main"], "--revision is of a hub model, and this is a directory"),
        (["Qwen/Qwen3-8B", "--revision", "../x"], "--revision '../x' is not a commit, branch or tag"),
        (["builtin", "-o", "b.json"], "a budget's file ends in .yaml: -o b.json.yaml"),
        (["builtin", "-o", "there.yaml"], "there.yaml is there already; --force writes over it"),
        (["builtin", "-o", "link.yaml"], "link.yaml is there already; --force writes over it"),
        (["builtin", "-o", "a\nb.yaml"], "the file's name holds what cannot be printed"),
        (["builtin", "--questions", "none.jsonl"], "there is no file 'none.jsonl'"),
        (
            ["builtin", "--questions", "bad.jsonl"],
            "the budget would not be read, and is not written: is not a JSON",
        ),
        (["line\nbreak"], ": a path with a line break or a control character is not written"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_written_is_told(init: Init, arguments: list[str], said: str) -> None:
    for folder in ("lora", "files", "empty", "encoder", "line\nbreak"):
        Path(folder).mkdir()
    told = {"peft_type": "LORA", "base_model_name_or_path": "acme/base"}
    Path("lora/adapter_config.json").write_text(json.dumps(told))
    Path("files/y.gguf").write_bytes(b"")
    Path("encoder/config.json").write_text(json.dumps({"architectures": ["BertForMaskedLM"]}))
    Path("there.yaml").write_text("kept")
    Path("bad.jsonl").write_text("{\n")
    Path("link.yaml").symlink_to("nowhere")
    before = sorted(Path().rglob("*"))
    code, out, error = init(*arguments)
    assert (code, out) == (4, "")
    assert error.startswith("ERROR: ")
    assert said in error
    assert sorted(Path().rglob("*")) == before
    assert Path("there.yaml").read_text() == "kept"


def test_a_file_that_is_there_is_replaced_by_force_alone(init: Init) -> None:
    Path("b.yaml").write_text("kept")
    assert init("builtin", "-o", "b.yaml", "--force")[0] == 0
    assert names(written("b.yaml"))


def test_one_that_comes_into_being_meanwhile_is_kept(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*arguments: object) -> Budget:
        Path("builtin.yaml").write_text("kept")
        return original(*arguments)  # type: ignore[arg-type]

    original = budget_of
    monkeypatch.setattr("pytest_quantbudget.commands.init.budget_of", late)
    code, _, error = init("builtin")
    assert (code, error) == (4, "ERROR: builtin.yaml has come into being meanwhile, and is left as it is\n")
    assert Path("builtin.yaml").read_text() == "kept"
    assert [path.name for path in Path().iterdir()] == ["builtin.yaml"]


def test_it_can_be_printed(init: Init) -> None:
    code, said, _ = init("builtin", "-o", "-")
    assert code == 0
    assert yaml.safe_load(said)["model"] == "builtin"
    assert not list(Path().iterdir())


def test_what_lies_outside_is_allowed_by_the_commands(init: Init, tmp_path: Path) -> None:
    outside = model(tmp_path / "out side")
    code, said, _ = init(str(outside), "--gpu", "L4", "-o", "b.yaml")
    assert code == 0
    assert f"--quant-update -o 'quant_allow_paths='\"'\"'{outside}'\"'\"''\n" in said
    assert main(["check", "b.yaml"]) == 4
    assert main(["check", "b.yaml", "--allow-path", str(outside)]) == 0


@pytest.mark.parametrize(
    "name", ['my "model" #1 é', "a: b", "- x", "'q'", "{x}", "*", "&a", "no", "1e3", "0x10", "%", "模型", "‮x", "a\\n"]
)
def test_a_directory_of_any_name_is_written_and_read(init: Init, name: str) -> None:
    shutil.copytree(BUILTIN_DIR, name)
    code, _, error = init(f"./{name}", "-o", "b.yaml")
    if not name.isprintable():
        assert code == 4
        assert "a path with a line break or a control character is not written" in error
        return
    assert (code, error) == (0, "")
    assert written("b.yaml").model == str(Path(name).resolve())
    assert all(line.isprintable() for line in Path("b.yaml").read_text().split("\n"))


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40))
@example("~")
@example("null")
@example("2026-11-28")
def test_any_text_is_read_back_as_it_was(value: str) -> None:
    line = f"key: {text.scalar(value)}"
    assert "\n" not in line
    assert yaml.safe_load(line)["key"] == value
    assert parse(line, Path("b.yaml")).entries["key"].plain == value


def test_nothing_heavy_is_imported(init: Init) -> None:
    before = {name for name in ("torch", "transformers", "numpy") if name in sys.modules}
    assert init("builtin", "-o", "-")[0] == 0
    assert {name for name in ("torch", "transformers", "numpy") if name in sys.modules} == before


@pytest.mark.parametrize("revision", [None, "main"])
def test_a_hub_model_is_found_in_the_hubs_cache(
    init: Init, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--acme--chat"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("ab" * 20)
    told = {"auto_map": {"AutoConfig": "code.Config"}, "dtype": "float16", "max_position_embeddings": 600}
    model(folder / "snapshots" / ("ab" * 20), **told)
    (folder / "snapshots" / ("ab" * 20) / "chat_template.jinja").write_text("{{ messages }}")
    more = ["--revision", revision] if revision else []
    code, said, error = init("acme/chat", "--gpu", "24 GiB", *more)
    assert (code, error) == (0, "")
    text = Path("chat.yaml").read_text()
    # In the model's own type, with what fits into 600 tokens; code is run where the command line says so alone.
    assert "baseline: fp16\n" in text
    assert "gsm8k: {shots: 0, questions: {start: 100, max: 1319}}" in text
    assert "prompt_tokens: 150, new_tokens: 37" in text
    assert "`chat_template: true` asks as its users do" in text
    assert "--quant-update --quant-trust-remote-code\n" in said


def test_a_model_that_reads_few_tokens_is_asked_nothing(init: Init) -> None:
    model(Path("m"), max_position_embeddings=256)
    assert init("m", "--gpu", "L4")[0] == 0
    assert written("m.yaml").tasks == {}
    assert names(written("m.yaml"))["nf4"] == ["max_vram", "min_tokens_per_s"]
    assert "# no task: the model reads 256 tokens, and GSM8K takes 512" in Path("m.yaml").read_text()


def test_an_architecture_that_is_not_known_leaves_nothing_out(init: Init) -> None:
    model(Path("odd"), model_type="odd")
    assert init("odd", "--gpu", "1 GiB")[0] == 0
    assert list(names(written("odd.yaml"))) == ["bf16", "int8", "nf4"]


def test_this_machines_cards_are_those_that_it_is_for(init: Init, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Gpu(0, "NVIDIA L4", "GPU-1", 23034 * 2**20, 23000 * 2**20, "8.9", "580.1")
    old = Gpu(1, "Tesla V100", "GPU-2", 32 * 2**30, 32 * 2**30, "7.0", "580.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("pytest_quantbudget.measure.hardware.all_gpus", lambda: [card, card, old])
    assert init("Qwen/Qwen3-8B")[0] == 0
    budget = written("qwen3-8b.yaml")
    (speed,) = (limit for limit in budget.method("nf4").limits if limit.name == "min_tokens_per_s")
    assert [target.pattern for target in speed.targets] == ["Tesla V100", "NVIDIA L4"]
    assert budget.baseline == "fp16"
