"""Predicted memory: equal to what loaded models hold, byte for byte; printed without torch; heeded before loading.

All methods of transformers are compared on the built-in model in test_methods.py, which has it loaded.
"""

import json
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.gpus import Gpu
from pytest_quantbudget.core.request import Subject, Workload
from pytest_quantbudget.measure import hardware
from pytest_quantbudget.models import config as configs
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.estimate import families, fit, memory
from pytest_quantbudget.models.estimate.formats import Format
from pytest_quantbudget.models.estimate.memory import Estimate

QWEN = "Qwen/Qwen3-8B"
GIB = 2**30
WORKLOAD = Workload(512, 128, 1, 5)
T4 = Gpu(0, "Tesla T4", "GPU-1", 15 * GIB, 15 * GIB, "7.5", "580.1")
SMALL: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 1024,
}  # fmt: skip


def subject(model: str, method: str, **more: Any) -> Subject:
    """A model in a method with its default options."""
    options = {field.name: field.default for field in methods.spec(method).options} | more.pop("options", {})
    return Subject(model, None, method, more.pop("checkpoint", None), options, None, **more)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models: a Llama with an output layer of its own, and a Qwen2, whose attention has biases."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    made = {
        "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
        "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, config in made.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return {name: folder / name for name in made}


@pytest.mark.model
@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("bf16", {}),
        ("int8", {}),
        ("nf4", {}),
        ("nf4", {"double_quant": False}),
        ("torchao-int8", {}),
        ("torchao-int8", {"group_size": 64, "compute_dtype": "float32"}),
        ("torchao-int4", {"group_size": 32}),
        ("torchao-int4", {"compute_dtype": "float16", "hqq": True}),
        ("torchao-intx", {"bits": 3, "group_size": -1}),
        ("torchao-intx", {"group_size": 32, "compute_dtype": "float32"}),
        ("torchao-fp8", {}),
        ("torchao-fp8", {"group_size": 128}),
    ],
)
def test_weights_are_those_of_the_loaded_model(
    models: dict[str, Path], name: str, method: str, options: dict[str, Any]
) -> None:
    from pytest_quantbudget.engine.hf.memory import weight_bytes

    asked = subject(str(models[name]), method, options=options)
    loaded = methods.spec(method).load(models[name], asked.options, "cpu")
    predicted = memory.estimate(asked, WORKLOAD)
    assert predicted.weights == weight_bytes(loaded)
    assert predicted.parameters == loaded.num_parameters()  # type: ignore[operator]  # counts packed values as two


# Every entry that decides about parameters, in each family that has it; the last is the configuration that ships.
CONFIGS: Sequence[dict[str, Any]] = [
    {"model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True, "head_dim": 48},
    {"model_type": "llama", **SMALL, "num_key_value_heads": None, "tie_word_embeddings": True},
    {"model_type": "mistral", **SMALL, "sliding_window": 64},
    {"model_type": "qwen2", **SMALL},
    {"model_type": "qwen3", **SMALL, "attention_bias": True, "tie_word_embeddings": True},
    configs.find_config(QWEN),
]


@pytest.mark.model
@pytest.mark.parametrize("config", CONFIGS, ids=["biases", "no groups", "mistral", "qwen2", "qwen3", "Qwen3-8B"])
def test_parameters_are_those_that_transformers_builds(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    shape = families.read(config)
    assert sum(shape.parameters.values()) == model.num_parameters()
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    total = sum(kind.bytes for kind in memory.weights(shape, Format(4)))
    assert total == 4 * model.num_parameters() + buffers


def test_arithmetic_on_qwen3_8b() -> None:
    """The figures that are published, or that anybody can work out from its configuration."""
    found = memory.estimate(subject(QWEN, "fp16"), WORKLOAD)
    kinds = {kind.name: kind for kind in found.kinds}
    assert found.parameters == 8_190_735_360
    assert found.parameters - kinds["embedding"].parameters - kinds["output layer"].parameters == 6_946_075_648
    assert round(found.weights / GIB, 2) == 15.26
    assert found.kv_cache == 147_456 * (512 + 127)  # the last token's keys are never needed
    assert memory.estimate(subject(QWEN, "fp16"), Workload(512, 128, 4, 5)).kv_cache == 4 * found.kv_cache
    awq = memory.estimate(subject(QWEN, "awq-int4"), WORKLOAD)
    assert round(awq.weights / GIB, 2) == 5.68  # model card glenic, Qwen3-8B-AWQ
    assert [kind.name for kind in awq.kinds if kind.bits == 16] == ["embedding", "norms", "output layer"]


def test_a_window_bounds_the_cache_but_for_the_prompt() -> None:
    shape = families.read({"model_type": "mistral", **SMALL, "sliding_window": 64})
    full = families.read({"model_type": "mistral", **SMALL, "sliding_window": None})
    half = families.read({**CONFIGS[3], "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1})
    form, load = Format(2), Workload(100, 29, 3, 1)
    token = 3 * 2 * 2 * 32 * 2  # sequences, keys and values, heads, size, bytes; in one layer
    assert memory.kv_bytes(full, form, load, 128) == 2 * 128 * token
    assert memory.kv_bytes(shape, form, load, 128) == 2 * 64 * token
    assert memory.kv_bytes(shape, form, load, 100, whole=True) == 2 * 100 * token
    assert memory.kv_bytes(half, form, load, 128) == (128 + 64) * token


@pytest.mark.model
@pytest.mark.parametrize(
    ("load", "slack"), [(Workload(256, 4, 1, 1), 0.001), (Workload(4, 64, 2, 1), 0.1)], ids=["prefill", "decoding"]
)
@pytest.mark.parametrize("method", ["fp32", "torchao-int8", "torchao-fp8"])
def test_activations_are_what_generate_keeps_alive(
    models: dict[str, Path], method: str, load: Workload, slack: float
) -> None:
    """Every tensor that torch's operators return is counted until it is freed; what kernels take inside is not seen."""
    from torch import Tensor, inference_mode, ones_like
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from pytest_quantbudget.engine.hf import generation, speed
    from pytest_quantbudget.engine.hf.memory import parts

    class Alive(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.now = self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            tensors = (leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            for storage in (part.untyped_storage() for tensor in tensors for part in parts(tensor)):
                if storage._cdata not in known:
                    known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
            self.peak = max(self.peak, self.now)
            return out

        def freed(self, key: int, size: int) -> None:
            known.discard(key)
            self.now -= size

    more = {} if method == "fp32" else {"compute_dtype": "bfloat16"}
    asked = subject(str(models["llama"]), method, options=more)
    model: Any = methods.spec(method).load(models["llama"], asked.options, "cpu").eval()
    held = [part.untyped_storage() for tensor in (*model.parameters(), *model.buffers()) for part in parts(tensor)]
    known = {storage._cdata for storage in held}
    ids = speed.random_prompts(model, load)
    greedy = generation.greedy(model, load.new_tokens, min_new_tokens=load.new_tokens)
    with inference_mode(), Alive() as alive:
        model.generate(input_ids=ids, attention_mask=ones_like(ids), generation_config=greedy)
    predicted = memory.estimate(asked, load)
    assert predicted.peak - predicted.weights - memory.WORKSPACE == pytest.approx(alive.peak, rel=slack)


def test_the_estimate_needs_no_torch(pytester: pytest.Pytester) -> None:
    """Nor transformers, nor a GPU, nor the hub; and nothing is collected."""
    methods_ = "{fp16: {}, nf4: {}, gptq-int4: {checkpoint: acme/x}}"
    (pytester.path / "b.yaml").write_text(f"model: {QWEN}\nmethods: {methods_}\n")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'numpy']));"
    run = "import pytest; sys.exit(pytest.main(['--quant-budget', 'b.yaml', '--quant-estimate', '-n', '2']))"
    result = pytester.run(sys.executable, "-c", blocked + run)
    assert result.ret == 0, result.stderr.str()
    result.stdout.fnmatch_lines(
        [
            "estimate of b.yaml",
            "Qwen/Qwen3-8B: 8,190,735,360 parameters; 512 prompt tokens, 128 new tokens, batch size 1",
            "method * embedding * attention * MLP * norms * output layer * weights * KV cache * peak * process",
            "fp16 * 15.3 GiB  89.9 MiB *",
            "nf4 * 5.66 GiB  89.9 MiB *",
            "nf4: 4 bits: attention, MLP (3.34 GiB, of that 105 MiB scales and zero points); 16 bits: embedding, *",
            "gptq-int4: acme/x is not on this machine: its format is taken to be that of the options",
            "fits Tesla T4 (15.0 GiB): nf4, gptq-int4",
            "fits NVIDIA L4 (22.5 GiB): fp16, nf4, gptq-int4",
        ]
    )
    result.stdout.no_fnmatch_line("*session starts*")


def test_gpus_of_the_machine_are_in_the_list(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "all_gpus", lambda: [T4])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (pytester.path / "b.yaml").write_text(f"model: {QWEN}\nmethods: {{fp16: {{gpus: 2}}, int8: {{}}}}\n")
    result = pytester.runpytest("b.yaml", "--quant-estimate")
    result.stdout.fnmatch_lines(["fits Tesla T4, of this machine (15.0 GiB): fp16 on 2, int8"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "model: acme/x",
            "ERROR: b.yaml:1: no estimate: no configuration of acme/x is on this machine: *",
        ),
        (
            "workload: {repeats: 3}\nmodel: mamba",
            "ERROR: b.yaml:2: no estimate: the architecture 'mamba' is not known *; nor are weights on this machine, *",
        ),
        ("model: odd", "ERROR: b.yaml:1: no estimate: config.json: vocab_size must be a whole number *"),
        (
            "model: s\ncalibration: builtin",
            "ERROR: b.yaml:3: gptq-int4: no estimate: gptq-int4 in groups of 128 cannot hold a layer of 192 inputs *",
        ),
        ("", "ERROR: --quant-estimate needs a budget: --quant-budget FILE"),
    ],
    ids=["nowhere", "architecture", "config", "group", "no budget"],
)
def test_mistakes_have_exit_code_4(pytester: pytest.Pytester, text: str, words: str) -> None:
    for name, config in {
        "mamba": {"model_type": "mamba"},
        "odd": {**CONFIGS[1], "vocab_size": "many"},
        "s": {**CONFIGS[1], "hidden_size": 192},
    }.items():
        (pytester.mkdir(name) / "config.json").write_text(json.dumps(config))
    method = "gptq-int4" if "calibration" in text else "fp16"
    if text:
        (pytester.path / "b.yaml").write_text(f"{text}\nmethods: {{{method}: {{}}}}\n")
    result = pytester.runpytest("--quant-estimate", *(["--quant-budget", "b.yaml"] if text else []))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


@pytest.mark.parametrize(
    "quantization", [{"bits": 8}, {"group_size": "all"}, {"dynamic": {"-:.*down.*": {}}}, {"group_size": 0}]
)
def test_a_checkpoint_of_another_format_is_not_guessed_at(tmp_path: Path, quantization: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS[0], "quantization_config": quantization}))
    with pytest.raises(ValueError, match="is not known to the estimate"):
        memory.estimate(subject(QWEN, "gptq-int4", checkpoint=str(tmp_path)), WORKLOAD)


@pytest.mark.model
def test_configurations_are_looked_for_in_the_hub_cache_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen3-8B"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    assert configs.find_config(QWEN)["model_type"] == "qwen3"
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert configs.find_config(QWEN)["model_type"] == "llama"
    assert configs.find_config(QWEN, "b" * 40)["model_type"] == "qwen3"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert configs.find_config(QWEN)["model_type"] == "qwen3"
    with pytest.raises(ValueError, match=f"huggingface_hub is not installed.* this package carries {QWEN}"):
        configs.find_config("acme/x")


def test_fixtures_heed_it_too(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "all_gpus", lambda: [T4])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (pytester.path / "b.yaml").write_text(f"model: {QWEN}\nmethods: {{fp16: {{}}}}\n")
    pytester.makepyfile("def test_one(quant_measurement): pass\ndef test_two(quant_model): pass\n")
    result = pytester.runpytest("--quant-budget", "b.yaml", "-rs", *pytester.path.glob("test_*.py"))
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED * fp16 cannot fit: its weights are predicted to take 15.3 GiB, *"])


def test_only_what_is_certain_keeps_a_method_from_being_loaded() -> None:
    fp16 = subject(QWEN, "fp16")
    found: Estimate = memory.estimate(fp16, WORKLOAD)
    tight = Gpu(0, "Tight", "GPU-2", found.peak, found.peak, "8.0", "580.1")
    assert fit.too_large(fp16, WORKLOAD, [tight], runs=True) is None
    assert not fit.fits(found, tight.total)  # a process takes more than that, but nobody knows exactly how much
    assert fit.too_large(fp16, WORKLOAD, [T4], runs=False) is not None
    assert fit.too_large(subject(QWEN, "fp16", gpus=2), WORKLOAD, [T4, T4], runs=True) is None
    assert fit.too_large(subject("acme/x", "fp16"), WORKLOAD, [T4], runs=True) is None  # nothing is known of it
    assert fit.too_large(fp16, WORKLOAD, [], runs=True) is None  # on a CPU
    assert fit.too_large(subject(str(BUILTIN_DIR), "fp16"), WORKLOAD, [T4], runs=True) is None
