"""The options of the engines auto-gptq and autoawq, by the names of their loaders, and how both are installed."""

from __future__ import annotations

from pytest_quantbudget.core.fields import FLAG, Field, choice, whole

# Only what is given is handed on: else the library's own default holds, which is the one named.
AUTO_GPTQ_OPTIONS = (
    Field("torch_dtype", choice("float16", "bfloat16", "float32"), "Type of what is not packed.", "float16"),
    Field("disable_exllama", FLAG, "Without the kernels ExLlama, which `disable_exllamav2: true` turns on."),
    Field("disable_exllamav2", FLAG, "Without the kernels ExLlamaV2.", False),
    Field("use_triton", FLAG, "With the kernels in Triton.", False),
    Field("use_marlin", FLAG, "With the kernels Marlin, for which weights are packed anew.", False),
    Field("use_cuda_fp16", FLAG, "With float16 in the older CUDA kernels.", True),
    Field("inject_fused_attention", FLAG, "With one layer for queries, keys and values.", False),
    Field("inject_fused_mlp", FLAG, "With one layer for gate and up (Triton).", False),
)
AUTOAWQ_OPTIONS = (
    Field("fuse_layers", FLAG, "With fused layers, which need the package autoawq-kernels.", True),
    Field("max_seq_len", whole(1), "Tokens of cache that fused layers and ExLlamaV2 take.", 2048),
    Field("batch_size", whole(1), "Sequences that their cache is for.", 1),
    Field("use_exllama", FLAG, "With the kernels ExLlama.", False),
    Field("use_exllama_v2", FLAG, "With the kernels ExLlamaV2.", False),
    Field("use_ipex", FLAG, "With the kernels of intel_extension_for_pytorch; on a CPU from 0.2.6 on.", False),
)
# Distributions of the environments that figures depend on.
AUTO_GPTQ_LIBRARIES = ("auto-gptq", "torch", "transformers", "accelerate", "triton")
AUTOAWQ_LIBRARIES = (
    *("autoawq", "autoawq-kernels", "torch", "transformers", "accelerate", "triton", "intel-extension-for-pytorch"),
)
# What the interpreter `{python}` gets.
AUTO_GPTQ_SETUP = (
    "{python} -m pip install torch==2.13.0 transformers==4.46.3 peft==0.13.2 accelerate==1.1.1 numpy==2.2.6 "
    "'datasets<4' gekko rouge sentencepiece safetensors setuptools wheel",
    "BUILD_CUDA_EXT=0 {python} -m pip install --no-build-isolation --no-deps auto-gptq==0.7.1",
)
AUTOAWQ_SETUP = (
    "{python} -m pip install torch==2.13.0 transformers==4.46.3 accelerate==1.6.0 numpy==2.2.6 'huggingface_hub<1' "
    "'datasets<4' zstandard",
    "{python} -m pip install --no-deps autoawq==0.2.5",
)
