"""The options of the engine llama.cpp, by the names of its own `llama.h`."""

from __future__ import annotations

from pytest_quantbudget.core.fields import FLAG, FLAG_OR_AUTO, Field, choice, whole

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
OPTIONS = (
    Field("n_gpu_layers", whole(-1), "Layers on the GPU; -1 for all, where the library was built for one.", -1),
    Field("main_gpu", whole(0), "The GPU that holds what is not split.", 0),
    Field("n_threads", whole(1, 512), "Threads; as many as torch takes where not given."),
    Field("n_ctx", whole(1), "Tokens of context of each sequence; as many as the work needs where not given."),
    Field("n_batch", whole(1), "Tokens that are handed over at once.", 2048),
    Field("n_ubatch", whole(1), "Tokens that are computed at once.", 512),
    Field("n_seq_max", whole(1, 255), "Questions of a task that are answered at once.", 16),
    Field("type_k", choice(*CACHE_TYPES), "Type of the keys in the cache.", "f16"),
    Field("type_v", choice(*CACHE_TYPES), "Type of the values in the cache.", "f16"),
    Field("flash_attn", FLAG_OR_AUTO, "Flash attention; auto where the library finds that it can."),
    Field("use_mmap", FLAG, "Map the file into memory instead of reading it.", True),
    Field("repack", FLAG, "Pack weights anew for this CPU's instructions while loading.", True),
)
