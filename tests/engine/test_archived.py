"""Checkpoints that auto-gptq and autoawq made: the logits of those libraries, early forms, and what is refused.

`tools/archived` made the small models and their logits, each with the library itself in an environment of its own.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core.files import BUILTIN_DIR
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import NotFinite
from pytest_quantbudget.engine.hf import load as loading
from pytest_quantbudget.engine.hf import logits
from pytest_quantbudget.engine.hf.load import Loaded
from pytest_quantbudget.models import checkpoint
from pytest_quantbudget.models.estimate.memory import estimate

pytestmark = pytest.mark.model
DATA = Path(__file__).parents[1] / "data" / "archived"
KINDS = {"auto-gptq": "gptq-int4", "auto-gptq-act-order": "gptq-int4", "autoawq": "awq-int4"}
NAMED = "gptq_model-4bit-32g.safetensors"
# Between float16 here and float32 there; a zero point that is one step off gives more than a hundred times as much.
TOLERANCE = 3e-5
Copy = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """Copies of the small models, under names of their own."""

    def made(name: str) -> Path:
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        shutil.copytree(DATA / name, folder)
        return folder

    return made


def subject(folder: Path, kind: str = "checkpoint", **more: Any) -> Subject:
    return Subject(str(BUILTIN_DIR), None, "mine", str(folder), {}, None, kind=kind, **more)


def load(folder: Path, kind: str = "checkpoint", trust: Trust = NO_TRUST) -> Loaded:
    pytest.importorskip("gptqmodel")
    return loading.load(subject(folder, kind), None, trust)


def stored(name: str) -> Any:
    from safetensors.torch import load_file

    return load_file(DATA / "logits.safetensors")[name]


def given(found: Loaded) -> Any:
    """Its logits for the stored tokens, shape (1, tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        return found.model(input_ids=stored("tokens")).logits.float()


def estimated(folder: Path, kind: str) -> int:
    """Bytes of the weights, by the configuration and what the checkpoint says alone."""
    return estimate(replace(subject(folder, kind), model=str(folder)), Workload(16, 8, 2, 2)).weights


def kl(ours: Any, theirs: Any) -> float:
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def edit(path: Path, *drop: str, **more: Any) -> None:
    """Change a JSON file's entries."""
    held = {**(json.loads(path.read_text()) if path.exists() else {}), **more}
    path.write_text(json.dumps({name: value for name, value in held.items() if name not in drop}))


def change(folder: Path, how: Callable[[dict[str, Any]], dict[str, Any]], name: str = NAMED) -> None:
    """Change a model's tensors."""
    from safetensors.torch import load_file, save_file

    save_file(how(load_file(folder / name)), folder / name, {"format": "pt"})


# The same logits


@pytest.mark.parametrize("name", KINDS)
def test_the_logits_are_the_librarys_own(name: str) -> None:
    import torch

    found, theirs = load(DATA / name, KINDS[name]), stored(name)
    assert kl(given(found), theirs) < TOLERANCE
    assert kl(torch.zeros_like(theirs), theirs) > 0.1
    assert found.description.packing is not None
    assert found.description.packing.label == f"{KINDS[name].removesuffix('-int4')} int4 g32"
    assert found.description.made_with is not None
    assert found.description.made_with["group_size"] == 32
    assert found.description.receipt.main_bits == 4
    assert found.description.disk == sum(path.stat().st_size for path in (DATA / name).glob("*.safetensors"))
    of_any = load(DATA / name)
    assert bool((given(of_any) == given(found)).all())
    assert of_any.description.weights == found.description.weights
    assert estimated(DATA / name, KINDS[name]) == found.description.weights


def test_one_step_of_a_zero_point_would_be_seen(copy: Copy) -> None:
    """auto-gptq stores zero points less one; whoever reads them as they stand is one step off."""
    folder = copy("auto-gptq")
    edit(folder / "config.json", quantization_config={**told(folder), "checkpoint_format": "gptq_v2"})
    assert kl(given(load(folder)), stored("auto-gptq")) > 100 * TOLERANCE


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


# Early forms


@pytest.mark.parametrize("name", ["auto-gptq", "auto-gptq-act-order"])
@pytest.mark.parametrize("file", [NAMED, "model.safetensors", "mine.safetensors"])
def test_a_quantize_config_alone_tells_how_auto_gptq_packed(name: str, file: str, copy: Copy) -> None:
    folder = copy(name)
    (folder / NAMED).rename(folder / file)
    edit(folder / "config.json", "quantization_config")
    newer = ["quant_method", "is_marlin_format", "static_groups", "model_name_or_path", "model_file_base_name"]
    edit(folder / "quantize_config.json", *newer)
    if file == "mine.safetensors":
        edit(folder / "quantize_config.json", model_file_base_name="mine")
    found = load(folder, "gptq-int4")
    assert kl(given(found), stored(name)) < TOLERANCE
    assert found.description.made_with is not None
    assert found.description.made_with["act_order"] == (name == "auto-gptq-act-order")


@pytest.mark.parametrize("file", ["awq_model_w4_g32.safetensors", "model.safetensors"])
def test_a_quant_config_alone_tells_how_autoawq_packed(file: str, copy: Copy) -> None:
    folder = copy("autoawq")
    (folder / "model.safetensors").rename(folder / file)
    edit(folder / "config.json", "quantization_config")
    edit(folder / "quant_config.json", zero_point=True, q_group_size=32, w_bit=4, version="GEMM")
    found = load(folder, "awq-int4")
    assert kl(given(found), stored("autoawq")) < TOLERANCE
    assert found.description.made_with == {"bits": 4, "group_size": 32, "zero_point": True}
    assert estimated(folder, "awq-int4") == found.description.weights


@pytest.mark.parametrize("base", ["model", "gptq_model-4bit-32g"])
def test_an_early_form_may_be_split(base: str, copy: Copy) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy("auto-gptq")
    edit(folder / "config.json", "quantization_config")
    held = load_file(folder / NAMED)
    (folder / NAMED).unlink()
    files = {name: f"{base}-0000{1 + ('layers.1' in name)}-of-00002.safetensors" for name in held}
    for file in set(files.values()):
        save_file({name: held[name] for name in held if files[name] == file}, folder / file, {"format": "pt"})
    (folder / f"{base}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    assert [path.name for path in checkpoint.weight_files(folder, NO_TRUST)] == sorted(set(files.values()))
    assert kl(given(load(folder)), stored("auto-gptq")) < TOLERANCE


def test_a_pickled_checkpoint_is_read_where_that_is_allowed(copy: Copy) -> None:
    import torch
    from safetensors.torch import load_file

    folder = copy("auto-gptq")
    torch.save(load_file(folder / NAMED), folder / NAMED.replace("safetensors", "bin"))
    (folder / NAMED).unlink()
    with pytest.raises(ValueError, match="holds no safetensors weights; only --quant-allow-pickle allows others"):
        load(folder)
    with pytest.raises(ValueError, match=r"in gptq_model-4bit-32g.bin, where .*: name it pytorch_model.bin"):
        load(folder, trust=Trust(pickles=True))
    (folder / NAMED.replace("safetensors", "bin")).rename(folder / "pytorch_model.bin")
    assert kl(given(load(folder, trust=Trust(pickles=True))), stored("auto-gptq")) < TOLERANCE


# Refused


def test_weights_under_another_name_or_twice_are_refused(copy: Copy) -> None:
    folder = copy("auto-gptq")
    shutil.copy(folder / NAMED, folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"m0 holds weights in model.safetensors and in {NAMED}, .* take one away"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / NAMED).rename(folder / "vicuna-13b-4bit-32g.safetensors")
    with pytest.raises(ValueError, match=r"in vicuna-13b-4bit-32g.safetensors, .*: name it model.safetensors"):
        load(folder)
    edit(folder / "config.json", quantization_config={**told(folder), "model_file_base_name": "../x"})
    with pytest.raises(ValueError, match=r"names '../x', which is not a file of its own directory"):
        checkpoint.early_file(folder)


@pytest.mark.parametrize("kind", ["gptq-int4", "checkpoint"])
def test_what_is_packed_for_marlin_alone_is_refused(kind: str, copy: Copy) -> None:
    folder = copy("auto-gptq")
    edit(folder / "config.json", quantization_config={**told(folder), "is_marlin_format": True})
    with pytest.raises(ValueError, match=r"in m0 is packed for auto-gptq's own Marlin kernels \(is_marlin_format\)"):
        load(folder, kind)


def test_forms_that_have_no_kernels_here_name_those_that_have(copy: Copy) -> None:
    import torch

    folder = copy("autoawq")
    edit(folder / "config.json", quantization_config={**told(folder), "version": "gemv_slow"})
    with pytest.raises(ValueError, match=r"m0 says it is awq in the format 'gemv_slow'; here run: .*gemm"):
        load(folder)
    if torch.cuda.is_available():
        pytest.skip("GPUs have kernels for autoawq's form gemv")
    edit(folder / "config.json", quantization_config={**told(folder), "version": "GEMV"})
    with pytest.raises(ValueError, match=r"awq in the format gemv has no kernels that can be used here: .*gemm"):
        load(folder)


# Tied embeddings

HEAD, EMBEDDED = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("early", [False, True])
def test_an_output_layer_that_is_tied_and_not_stored_is_the_embeddings(early: bool, copy: Copy) -> None:
    tied, twice = copy("auto-gptq"), copy("auto-gptq")
    change(tied, lambda held: {name: value for name, value in held.items() if name != HEAD})
    change(twice, lambda held: {**held, HEAD: held[EMBEDDED].clone()})
    edit(tied / "config.json", *["quantization_config"] * early, tie_word_embeddings=True)
    assert bool((given(load(tied)) == given(load(twice))).all())
    # Both are stored, and are the same.
    edit(twice / "config.json", tie_word_embeddings=True)
    assert bool((given(load(twice)) == given(load(tied))).all())


@pytest.mark.parametrize("early", [False, True])
def test_an_output_layer_that_is_not_there_or_contradicts_is_refused(early: bool, copy: Copy) -> None:
    folder = copy("auto-gptq")
    edit(folder / "config.json", *["quantization_config"] * early, tie_word_embeddings=True)
    words = rf"m0 contradicts itself: its config.json ties {HEAD} to {EMBEDDED} \(tie_word_embeddings\), and its files"
    with pytest.raises(ValueError, match=words):
        load(folder)
    change(folder, lambda held: {name: value for name, value in held.items() if name != HEAD})
    edit(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(ValueError, match=rf"m0 lacks 1 of the model's \d+ tensors \({HEAD}\), which would be random"):
        load(folder)


def test_logits_that_are_zero_or_no_numbers_are_not_measured(copy: Copy) -> None:
    """What auto-gptq's own loader gives for a tied output layer, stored as such."""
    folder = copy("auto-gptq")
    change(folder, lambda held: {**held, HEAD: held[HEAD] * 0})
    with pytest.raises(NotFinite, match="all 512 logits are 0: the weights do nothing"):
        logits.check(load(folder).model)
    change(folder, lambda held: {**held, HEAD: held[HEAD] * float("nan")})
    with pytest.raises(NotFinite, match="512 of 512 logits are NaN or infinite on 8 random tokens"):
        logits.check(load(folder).model)
