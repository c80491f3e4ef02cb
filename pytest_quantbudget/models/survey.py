"""What there is to know of a model before anything is loaded: from its configuration and other small files."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import files
from pytest_quantbudget.core.packing import Packing
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models import checkpoint, config, hub, quantization

# How the classes of models end that go on with a text.
WRITERS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageTextToText")
POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx")
TOKENIZER = "tokenizer.json"
EVERYTHING = Trust(remote_code=True, pickles=True)
COMMAND = "python -m pytest_quantbudget init"


@dataclass(frozen=True)
class Survey:
    """One model: a hub id or an absolute directory, and the `folder` in which its configuration was found.

    `packing` is what it says of how it is quantized, None where it is not. `dtype` is the type of its weights,
    `positions` the longest text that it reads (tokens), and `chat` whether its tokenizer has a chat template; None
    where that is not known. It needs `code` of its own, or its weights are `pickled`, where the command line has to
    allow that. `shipped` says that it is the model of this package, or one trained from it.
    """

    model: str
    folder: Path
    packing: Packing | None = None
    dtype: str | None = None
    positions: int | None = None
    chat: bool | None = None
    code: bool = False
    pickled: bool = False
    shipped: bool = False


def survey(model: str, revision: str | None = None) -> Survey:
    """What is known of a model: a hub id, or an absolute directory.

    Of a hub id that is not on this machine, the small files are fetched where the hub may be asked. Raises ValueError,
    saying what to do, for what is no language model, and where there is no configuration.
    """
    folder = _folder(model, revision)
    told = checkpoint.config(folder)
    _check_writes(model, told)
    packed = checkpoint.quantization(folder)
    text = told.get("text_config")
    own = text if isinstance(text, dict) else told
    return Survey(
        model,
        folder,
        quantization.read(packed) if packed else None,
        _dtype(told) or _dtype(own),
        next((own[key] for key in POSITIONS if type(own.get(key)) is int and own[key] > 0), None),
        _chat(folder),
        bool(told.get("auto_map")),
        _pickled(folder),
        _shipped(folder),
    )


def _dtype(told: Mapping[str, Any]) -> str | None:
    named = told.get("dtype") or told.get("torch_dtype")
    return named.removeprefix("torch.") if isinstance(named, str) else None


def _folder(model: str, revision: str | None) -> Path:
    """The folder with a model's configuration."""
    if Path(model).is_absolute():
        folder = Path(model)
        checkpoint.check_regular(folder)
        if (folder / checkpoint.ADAPTER_CONFIG).exists():
            raise ValueError(_of_adapter(folder))
        if not (folder / "config.json").exists():
            ready = sorted(path.name for path in folder.glob("*.gguf"))
            raise ValueError(of_gguf(ready[0]) if ready else f"{folder.name} holds no model: there is no config.json")
        return folder
    try:
        return config.find_folder(model, revision)
    except ValueError as error:
        return _fetched(model, revision, str(error))


def _fetched(model: str, revision: str | None, nowhere: str) -> Path:
    """The folder of a hub model's small files, fetched now. Raises ValueError where that cannot be done."""
    more = "" if revision is None else f" --revision {revision}"
    by_hand = f"`hf download {model} config.json tokenizer_config.json{more}` fetches what is needed, a few kB"
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(f"{nowhere}; {by_hand}")
    try:
        folder, _ = hub.fetch(model, revision, NO_TRUST, weights=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{nowhere}; {by_hand} ({str(error).splitlines()[0]})") from None
    if not (folder / "config.json").is_file():
        raise ValueError(f"{model} holds no model for transformers: there is no config.json")
    return folder


def _of_adapter(folder: Path) -> str:
    """That a directory holds an adapter, and how a budget for it is begun."""
    base = checkpoint.adapter_config(folder).get("base_model_name_or_path")
    named = base if isinstance(base, str) and base.strip() else "MODEL"
    trained = "" if named == "MODEL" else f", trained on {named}"
    why = f"{folder.name} holds an adapter ({checkpoint.ADAPTER_CONFIG}){trained}: name its base model"
    return f"{why}, as in `{COMMAND} {named} --use qlora --adapter {folder.name}`"


def of_gguf(name: str) -> str:
    """That a GGUF file is no model by itself, and how a budget for it is begun."""
    how = f"`{COMMAND} MODEL --use edge --checkpoint {name}`"
    return f"{name} is a GGUF file, one way to run a model: name the model that it was made of, as in {how}"


def _check_writes(model: str, told: Mapping[str, Any]) -> None:
    """Raise ValueError for a model that goes on with no text."""
    classes = told.get("architectures")
    names = [name for name in classes if isinstance(name, str)] if isinstance(classes, list) else []
    writes = not names or any(name.endswith(WRITERS) for name in names)
    if not writes or told.get("is_encoder_decoder") is True:
        what = names[0] if names else "an encoder with a decoder"
        raise ValueError(f"{Path(model).name} is no causal language model ({what:.60}), and only those are measured")


def _chat(folder: Path) -> bool | None:
    """Whether the tokenizer has a chat template; None where its files are not here."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        told = files.read(folder / "tokenizer_config.json", checkpoint.MAX_JSON)
    except (OSError, files.TooLarge):
        return None
    return b'"chat_template"' in told


def _pickled(folder: Path) -> bool:
    """Whether its weights are here, and all of them are pickles."""
    try:
        return all(path.suffix != ".safetensors" for path in checkpoint.weight_files(folder, EVERYTHING))
    except ValueError:
        return False


def _shipped(folder: Path) -> bool:
    """Whether it has the tokenizer of the model in this package, and so knows its kind of questions."""
    try:
        ours, theirs = (files.read(each / TOKENIZER, checkpoint.MAX_JSON) for each in (files.BUILTIN_DIR, folder))
    except (OSError, files.TooLarge):
        return False
    return ours == theirs
