"""A LoRA adapter as PEFT saves it: may it be loaded, what is in it, and is it one for this model.

LoRA: Hu et al. 2021, arXiv 2106.09685. As with models, everything here may be hostile, and of weights only the headers
are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import TRANSFORMERS
from pytest_quantbudget.core.request import Subject, Trust
from pytest_quantbudget.models import checkpoint, hub, tensors

SAFE, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
LAYER = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.(?:weight|bias))?"
)

# Of adapter_config.json: what nothing here runs, and why.
NEVER: Mapping[str, str] = {
    "megatron_config": "names the layers of another library",
    "layer_replication": "makes another model of its base",
    "alora_invocation_tokens": "is for the tokens after certain ones alone",
    "arrow_config": "chooses among several adapters",
}
# Ways to begin that take away from the base model's weights what the adapter begins with.
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What PEFT runs and other engines do not.
BEYOND_PLAIN = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices",
    "target_parameters", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip

# Expressions that PEFT matches with every module's name: a string, a list of them, or the keys of a mapping.
EXPRESSIONS = ("target_modules", "exclude_modules", "layers_pattern", "alpha_pattern", "rank_pattern")
# Of an expression with its escapes and classes taken out. A repeated group takes time that grows exponentially with
# the name, and n repeats a power of n: names have some hundred characters.
LONGEST_EXPRESSION, MOST_REPEATS, LONGEST_NAME = 1000, 6, 300
ONE_LETTER = re.compile(r"\\.|\[\^?\]?[^\]]*\]", re.DOTALL)
REPEAT, REPEATED_GROUP = re.compile(r"[*+]|\{\d*,\d*\}"), re.compile(r"\)(?:[*+]|\{)")


@dataclass(frozen=True)
class Lora:
    """An adapter in the directory `folder`, whose weights are the file `path`; `name` is that of the budget."""

    name: str
    folder: Path
    revision: str
    path: Path
    config: Mapping[str, Any]

    @property
    def tensors(self) -> dict[str, tuple[str, list[int]]]:
        """Type and shape of its tensors, without PEFT's prefix; none where they are pickled."""
        held = checkpoint.header(self.path) if self.path.suffix == ".safetensors" else {}
        return {name.removeprefix(PREFIX): entry for name, entry in held.items()}

    @property
    def values(self) -> int:
        """How many values its tensors have."""
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.path.stat().st_size

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(_ranks(self.config), default=0)

    def scaling(self, module: str, rank: int) -> float:
        """What the product of a module's matrices is multiplied by.

        As PEFT has it: alpha over the rank, or over its root (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732).
        """
        alpha = self.config.get("lora_alpha", 8)
        for pattern, other in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = other
                break
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def find(subject: Subject, trust: Trust) -> Lora | None:
    """The adapter of a subject, downloaded where needed; None where it has none.

    Raises ValueError where it must not be loaded, or is none that the subject's engine runs.
    """
    adapter = subject.adapter
    if adapter is None:
        return None
    folder, revision = hub.fetch(adapter.name, adapter.revision, trust)
    found = read(adapter.name, folder, revision, trust)
    why = unfit(found.config, subject.engine, plain=subject.engine != TRANSFORMERS and not adapter.merge)
    if why is not None:
        raise ValueError(f"{folder.name}: {why}")
    return found


def read(name: str, folder: Path, revision: str, trust: Trust) -> Lora:
    """The adapter in a directory. Raises ValueError where there is none, or it must not be loaded."""
    checkpoint.check_regular(folder)
    config = config_in(folder)
    if not trust.remote_code:
        checkpoint.refuse_code(f"{folder.name}/{checkpoint.ADAPTER_CONFIG}", config)
    for file in (SAFE, PICKLED) if trust.pickles else (SAFE,):
        if (folder / file).is_file():
            found = Lora(name, folder, revision, folder / file, config)
            if file == SAFE and not found.tensors:
                raise ValueError(f"{folder.name}/{SAFE} holds no tensor")
            longest = max(map(len, found.tensors), default=0)
            if longest > LONGEST_NAME:
                raise ValueError(f"{folder.name}/{SAFE} holds a tensor whose name has {longest:,} characters")
            return found
    hint = "" if trust.pickles else "; only --quant-allow-pickle allows others, and loading those can run code"
    raise ValueError(f"{folder.name} has no {SAFE}{hint}")


def config_in(folder: Path) -> dict[str, Any]:
    """The configuration of the adapter in a directory. Raises ValueError where there is none."""
    if not (folder / checkpoint.ADAPTER_CONFIG).exists():
        whole = "; it holds a whole model" if (folder / "config.json").exists() else ""
        raise ValueError(f"{folder.name} holds no adapter: there is no {checkpoint.ADAPTER_CONFIG}{whole}")
    return checkpoint.adapter_config(folder)


def unfit(config: Mapping[str, Any], engine: str, *, plain: bool) -> str | None:
    """Why an adapter cannot be run by an engine, which may run `plain` ones alone; None where it can."""
    kind, task, begun = config.get("peft_type"), config.get("task_type"), config.get("init_lora_weights")
    if kind != "LORA":
        return f"the adapter is of the kind {kind!r:.40}, and only LORA is known here"
    if task not in (None, "CAUSAL_LM"):
        return f"the adapter is for the task {task!r:.40}, and a language model's is CAUSAL_LM"
    for key, why in NEVER.items():
        if config.get(key):
            return f"the adapter's {key} {why}, which is not known here"
    if isinstance(begun, str) and begun.lower().startswith(CHANGED_BASE):
        how = "save it with `path_initial_model_for_weight_conversion`, which makes a plain LoRA of it"
        return f"the adapter changes its base model's weights (init_lora_weights: {begun:.40}); {how}"
    if not all(isinstance(rank, int) and 0 < rank < 2**20 for rank in _ranks(config)):
        return "the adapter's r is no rank"
    if not isinstance(config.get("alpha_pattern") or {}, Mapping):
        return "the adapter's alpha_pattern is no mapping"
    for key in EXPRESSIONS:
        for said in map(hardly_matched, _expressions(key, config.get(key))):
            if said is not None:
                return f"the adapter's {key} {said}"
    beyond = [key for key in BEYOND_PLAIN if config.get(key)]
    beyond += ["bias"] * (config.get("bias", "none") != "none")
    if plain and beyond:
        return f"{engine} runs plain LoRA adapters, and this one has {' and '.join(beyond)}; `merge: true` takes it"
    return None


def _expressions(key: str, value: Any) -> list[Any]:
    """The expressions of an entry; names in the list of `target_modules` are none."""
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, Mapping) or (key == "layers_pattern" and isinstance(value, list)) else []


def hardly_matched(expression: Any) -> str | None:
    """Why a regular expression is not matched with names: it is none, or that could take for ever. None where it is."""
    if not isinstance(expression, str) or len(expression) > LONGEST_EXPRESSION:
        return f"holds an expression of more than {LONGEST_EXPRESSION:,} characters, or none"
    plain = ONE_LETTER.sub("x", expression)
    if REPEATED_GROUP.search(plain) or len(REPEAT.findall(plain)) > MOST_REPEATS:
        what = f"repeats a group, or has more than {MOST_REPEATS} repeats: to match it could take for ever"
        return f"holds {expression!r:.60}, which {what}"
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        return f"holds {expression!r:.60}, which is no regular expression ({error})"
    return None


def _ranks(config: Mapping[str, Any]) -> list[Any]:
    pattern = config.get("rank_pattern") or {}
    return [config.get("r", 8), *(pattern.values() if isinstance(pattern, Mapping) else ["?"])]


def check_fits(lora: Lora, modules: Mapping[str, Any], model: str) -> None:
    """Raise ValueError where an adapter is one of another model than that with these `modules`, by their names.

    Modules tell their shape as torch's linear layers do, quantized ones too.
    """
    held = lora.tensors
    found = {name: LAYER.fullmatch(name) for name in held}
    names = [match["module"] if match else name.rpartition(".")[0] for name, match in found.items()]
    wanted = list(dict.fromkeys(names))
    missing = [name for name in wanted if name not in modules]
    if missing:
        raise ValueError(
            f"{lora.folder.name} is an adapter of another model: of the {len(wanted)} layers that it changes, {model} "
            f"lacks {len(missing)} ({tensors.few(missing)})"
        )
    for name, match in found.items():
        part = match["part"] if match else ""
        if part not in ("lora_A", "lora_B") or match is None or name.endswith(".bias"):
            continue
        module, shape = modules[match["module"]], held[name][1]
        attribute, at, does = ("in_features", -1, "takes") if part == "lora_A" else ("out_features", 0, "gives")
        ours, theirs = getattr(module, attribute, None), shape[at] if shape else 0
        if isinstance(ours, int) and ours != theirs:
            raise ValueError(
                f"{lora.folder.name} is an adapter of another model: its {match['module']} {does} {theirs:,} values, "
                f"and that of {model} {ours:,}"
            )


def other_base(lora: Lora, model: str) -> str:
    """How the model that an adapter says it was trained on differs from the budget's, in words; empty where not."""
    told = lora.config.get("base_model_name_or_path")
    hub_ids = [name for name in (told, model) if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)]
    if len(hub_ids) == 2 and told != model:
        return f"the adapter {lora.folder.name} says that it was trained on {told}, and the model is {model}"
    return ""
