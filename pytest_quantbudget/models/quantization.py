"""The formats of quantized checkpoints: what each says it is, and which engines run it packed. Imports no library.

This table is the one place that knows. What is read here, `quantization_config` and its like, may come from anyone:
whatever it holds gives a label, and never an exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quantbudget.core.engines import LLAMA_CPP, TRANSFORMERS, VLLM
from pytest_quantbudget.core.packing import Packing

# What an engine does with a format: it runs the packed weights, it runs them written out in 16 or 32 bits, or neither.
PACKED, DECOMPRESSED, REFUSED = "packed", "decompressed", "refused"
MOST_KEPT = 1000  # names of modules in a report
NAME = re.compile(r"[\w.:+/-]{1,64}")

Config = Mapping[str, Any]
Told = tuple[str, float]  # a label, and bits


@dataclass(frozen=True)
class Run:
    """What an engine does with a format, and why, or on what that depends."""

    how: str
    why: str = ""


@dataclass(frozen=True)
class Form:
    """One format, by its `quant_method`.

    `read` gives its label and bits. `kept` are the keys under which it lists modules that it leaves alone. `engines`
    says what those do with it that are known to. `kinds` are the kinds of methods whose checkpoints may be of it.
    transformers needs `packages` for it, which the project's `extra` brings, and a GPU where it does not run `on_cpu`.
    With `counted`, all that transformers holds of a layer is in its parameters and buffers. `names` are those that a
    library may be given which looks them up in its modules and calls what it finds.
    """

    name: str
    read: Callable[[Config], Told]
    engines: Mapping[str, Run]
    kept: Sequence[str] = ()
    kinds: Sequence[str] = ()
    packages: Sequence[str] = ()
    extra: str | None = None
    counted: bool = True
    on_cpu: bool = True
    aliases: Sequence[str] = ()
    names: Sequence[str] | None = None


def _whole(value: object) -> int:
    """A number of bits or of values; 0 for what cannot be one."""
    return value if type(value) is int and 0 < value <= 1 << 20 else 0


def _first(config: Config, *names: str) -> int:
    return next(filter(None, (_whole(config.get(name)) for name in names)), 0)


def _word(value: object) -> str:
    """A name as it stands there; ? for what is none."""
    return value if isinstance(value, str) and NAME.fullmatch(value) else "?"


def _object(value: object) -> Config:
    return value if isinstance(value, Mapping) else {}


def _grouped(config: Config, *names: str) -> str:
    """` g128`; nothing where all of a row, or of a layer, share a scale."""
    size = _first(config, *names)
    return f" g{size}" if size else ""


def _compressed_tensors(config: Config) -> Told:
    groups = [_object(group) for group in _object(config.get("config_groups")).values()]
    told = [_scheme(group, str(group.get("format") or config.get("format") or "")) for group in groups]
    names = list(dict.fromkeys(name for name, _ in told if name))
    bits = {bits for name, bits in told if name}
    cache = " and its KV cache" if isinstance(config.get("kv_cache_scheme"), Mapping) else ""
    label = " + ".join(names[:4]) or "of no weights"
    return f"compressed-tensors {label}{cache}", bits.pop() if len(bits) == 1 else 0


def _scheme(group: Config, layout: str) -> Told:
    """Of one group of layers what its authors call it: W4A16, FP8, NVFP4."""
    weights, inputs = _object(group.get("weights")), _object(group.get("input_activations"))
    bits = _whole(weights.get("num_bits"))
    if not bits:
        return "", 0
    grouped = _grouped(weights, "group_size") if weights.get("strategy") in ("group", None) else ""
    if weights.get("type") == "float":
        small = "MXFP" if layout.startswith("mx") else "NVFP" if bits == 4 else "FP"
        name = f"{small}{bits}{'' if inputs else 'A16'}"
        block = " block" if weights.get("strategy") == "block" else ""
        dynamic = " dynamic" if small == "FP" and inputs.get("dynamic") is True else ""
        return f"{name}{block}{dynamic}", bits
    return f"W{bits}A{_whole(inputs.get('num_bits')) or 16}{grouped}", bits


def _fp8(config: Config) -> Told:
    sizes = config.get("weight_block_size")
    block = f" block {'x'.join(str(_whole(size)) for size in sizes[:2])}" if isinstance(sizes, list) and sizes else ""
    if config.get("expert_dtype") == "fp4":
        return f"fp8{block}, experts in fp4", 0
    return f"fp8{block}", 8


def _modelopt(config: Config) -> Told:
    algorithm = _word(config.get("quant_algo"))
    bits = 4 if re.search(r"FP4|W4", algorithm) else 8 if re.search(r"FP8|INT8|W8", algorithm) else 0
    return f"ModelOpt {algorithm}{_grouped(config, 'group_size') if bits == 4 else ''}", bits


def _bitsandbytes(config: Config) -> Told:
    if config.get("load_in_8bit") or config.get("_load_in_8bit"):
        return "bnb int8", 8
    return f"bnb {_word(config.get('bnb_4bit_quant_type', 'fp4'))}", 4


def _integers(name: str) -> Callable[[Config], Told]:
    """Of formats that say bits and group size."""

    def read(config: Config) -> Told:
        bits = _first(config, "bits", "w_bit")
        return f"{name} int{bits or '?'}{_grouped(config, 'group_size', 'q_group_size')}", bits

    return read


def _dynamic(name: str) -> Callable[[Config], Told]:
    """The same, where some layers may have other bits."""

    def read(config: Config) -> Told:
        label, bits = _integers(name)(config)
        uneven = next((key for key in ("dynamic", "extra_config") if config.get(key)), None)
        return (f"{label}, uneven", 0) if uneven else (label, bits)

    return read


# What torchao's checkpoints may name.
TORCHAO = (
    "Int8WeightOnlyConfig", "Int4WeightOnlyConfig", "IntxWeightOnlyConfig", "Float8WeightOnlyConfig",
    "Int8DynamicActivationInt8WeightConfig", "Int8DynamicActivationInt4WeightConfig",
    "Int8DynamicActivationIntxWeightConfig", "Float8DynamicActivationFloat8WeightConfig",
    "Float8DynamicActivationInt4WeightConfig", "FqnToConfig", "ModuleFqnToConfig", "PerRow", "PerGroup", "PerTensor",
    "PerAxis", "PerToken", "torch.dtype", "MappingType", "Int4PackingFormat", "Int4ChooseQParamsAlgorithm",
    "IntxPackingFormat", "IntxChooseQParamsAlgorithm", "Float8MMConfig", "KernelPreference", "PlainLayout",
)  # fmt: skip
# What torchao calls its configurations in short.
_SHORT = (("DynamicActivation", "da-"), ("WeightOnly", "wo"), ("StaticActivation", "sa-"), ("Weight", "w"))


def _torchao(config: Config) -> Told:
    kind = config.get("quant_type")
    chosen = _object(kind).get("default", kind)
    if isinstance(chosen, str):  # as older versions had it
        found = re.search(r"(int|float|uint)(\d)", chosen)
        return f"torchao {_word(chosen)}", int(found[2]) if found else 0
    name, data = _word(_object(chosen).get("_type")).rpartition(".")[2], _object(_object(chosen).get("_data"))
    if name == "IntxWeightOnlyConfig":
        of_weight = _word(_object(data.get("weight_dtype")).get("_data"))
        name = f"{of_weight.capitalize()}WeightOnlyConfig"
    short = name.removesuffix("Config")
    for long, abbreviation in _SHORT:
        short = short.replace(long, abbreviation)
    found = re.search(r"(\d+)(?:WeightOnly|Weight)", name)
    return f"torchao {short.lower()}{_grouped(data, 'group_size')}", int(found[1]) if found else 0


def _hqq(config: Config) -> Told:
    quantized = _object(config.get("quant_config"))
    params = _object(quantized.get("weight_quant_params")) or quantized
    bits = _first(params, "nbits")
    return f"hqq {bits or '?'}-bit{_grouped(params, 'group_size')}", bits


def _gguf(config: Config) -> Told:
    return "gguf", 0


def _other(config: Config) -> Told:
    name = _word(config.get("quant_method"))
    bits = _first(config, "bits", "w_bit", "nbits", "num_bits")
    return (f"{name} {bits}-bit" if bits else name), bits


_HERE = Run(PACKED)
_DROPPED = "vLLM has dropped it: 0.32 does not know it"
_GPU = "on a GPU of compute capability 8.9 or above; elsewhere transformers decompresses it while it loads"
_MX = "on a GPU, with Triton and the package `kernels`; elsewhere transformers decompresses it while it loads"

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form(
            "compressed-tensors",
            _compressed_tensors,
            {
                TRANSFORMERS: Run(DECOMPRESSED, "transformers decompresses compressed-tensors at the first forward"),
                VLLM: _HERE,
            },
            kept=("ignore",),
            packages=("compressed_tensors",),
            extra="compressed-tensors",
        ),
        Form(
            "fp8",
            _fp8,
            {TRANSFORMERS: Run(PACKED, _GPU), VLLM: _HERE},
            kept=("modules_to_not_convert", "ignored_layers"),
        ),
        Form(
            "modelopt",
            _modelopt,
            {
                TRANSFORMERS: Run(REFUSED, "transformers does not know it, and would use packed numbers as weights"),
                VLLM: _HERE,
            },
            kept=("exclude_modules", "ignore"),
            aliases=("modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8"),
        ),
        Form(
            "mxfp4",
            lambda config: ("mxfp4", 4),
            {TRANSFORMERS: Run(PACKED, _MX), VLLM: _HERE},
            kept=("modules_to_not_convert",),
        ),
        Form(
            "nvfp4",
            lambda config: ("nvfp4", 4),
            {TRANSFORMERS: Run(REFUSED, "transformers quantizes to it while it loads, and reads no checkpoint of it")},
            kept=("modules_to_not_convert",),
        ),
        Form(
            "auto-round",
            _dynamic("autoround"),
            {TRANSFORMERS: _HERE, VLLM: _HERE},
            packages=("auto_round",),
            aliases=("intel/auto-round",),
        ),
        Form(
            "bitsandbytes",
            _bitsandbytes,
            {TRANSFORMERS: _HERE, VLLM: Run(REFUSED, _DROPPED)},
            kept=("llm_int8_skip_modules",),
            kinds=("int8", "nf4"),
            packages=("bitsandbytes",),
            extra="bitsandbytes",
        ),
        Form(
            "gptq",
            _dynamic("gptq"),
            {TRANSFORMERS: _HERE, VLLM: Run(PACKED, "not with `desc_act`, and on a CPU only with AVX-512")},
            kinds=("gptq-int4",),
            packages=("gptqmodel", "optimum"),
            extra="gptqmodel",
        ),
        Form(
            "awq",
            _dynamic("awq"),
            {TRANSFORMERS: _HERE, VLLM: Run(PACKED, "on a CPU only with AVX-512")},
            kept=("modules_to_not_convert",),
            kinds=("awq-int4",),
            packages=("gptqmodel", "optimum"),
            extra="gptqmodel",
        ),
        Form(
            "torchao",
            _torchao,
            {TRANSFORMERS: _HERE, VLLM: _HERE},
            kept=("modules_to_not_convert",),
            kinds=("torchao-int8", "torchao-int4", "torchao-intx", "torchao-fp8"),
            packages=("torchao",),
            extra="torchao",
            names=TORCHAO,
        ),
        Form(
            "hqq",
            _hqq,
            {TRANSFORMERS: Run(PACKED, "on a GPU"), VLLM: Run(REFUSED, _DROPPED)},
            kept=("skip_modules",),
            packages=("hqq",),
            counted=False,
            on_cpu=False,
        ),
        Form(
            "gguf",
            _gguf,
            {
                LLAMA_CPP: _HERE,
                TRANSFORMERS: Run(REFUSED, "a GGUF file is for `engine: llama.cpp`, with `kind: gguf`"),
                VLLM: Run(REFUSED, _DROPPED),
            },
        ),
    )
}
_NAMES = {alias: form for form in FORMS.values() for alias in (form.name, *form.aliases)}
DENSE = "dense"


def form_of(config: Config) -> Form | None:
    """The format of a `quantization_config`, where it is one of the table."""
    return _NAMES.get(method_of(config))


def method_of(config: Config) -> str:
    """What a `quantization_config` calls its format; empty where it has no name."""
    if config.get("load_in_8bit") or config.get("load_in_4bit"):
        return "bitsandbytes"
    name = config.get("quant_method")
    return name if isinstance(name, str) else ""


def read(config: Config, dtype: object = None) -> Packing:
    """What a checkpoint with this `quantization_config` says it is; with none, its weights are of the type `dtype`."""
    if not config:
        told = _word(dtype).removeprefix("torch.")
        return Packing(DENSE, f"dense {told}" if told != "?" else DENSE, {"float32": 32}.get(told, 16))
    form = form_of(config)
    label, bits = (form.read if form else _other)(config)
    return Packing(form.name if form else _word(method_of(config)), label, bits, _kept(config, form))


def _kept(config: Config, form: Form | None) -> tuple[str, ...]:
    """The modules that are left in 16 bits, as far as a list names them."""
    keys = form.kept if form else ("modules_to_not_convert", "ignore")
    named = next((config[key] for key in keys if isinstance(config.get(key), list)), ())
    return tuple(str(name)[:200] for name in named[:MOST_KEPT] if isinstance(name, str))


def run(config: Config, engine: str) -> Run | None:
    """What an engine does with a checkpoint; None where that is not known."""
    form = form_of(config)
    return (form.engines.get(engine) if form else None) if config else _HERE


def strange(config: Config) -> str | None:
    """A name in a configuration that its library must not look up; None where there is none."""
    form, stack = form_of(config), [config.get("quant_type")]
    while form is not None and form.names is not None and stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            if "_type" in node and node["_type"] not in form.names:
                return str(node["_type"])[:60]
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return None


def packed_in(config: Config) -> list[str]:
    """The engines that run a checkpoint packed."""
    form = form_of(config)
    return [name for name, each in form.engines.items() if each.how == PACKED] if form else []


def packages() -> dict[str, str | None]:
    """What transformers needs for the formats of the table, with the project's extra that brings each."""
    return {package: form.extra for form in FORMS.values() for package in form.packages}


def rows() -> Iterator[tuple[str, ...]]:
    """The table for people: a format, and what each engine does with it."""
    for form in FORMS.values():
        yield (form.name, *(_said(form.engines.get(engine)) for engine in (TRANSFORMERS, VLLM, LLAMA_CPP)))


def _said(found: Run | None) -> str:
    if found is None:
        return "no"
    return f"{'no' if found.how == REFUSED else found.how}{f': {found.why}' if found.why else ''}"
