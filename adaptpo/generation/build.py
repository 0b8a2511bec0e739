"""From the settings of `generation` to what reaches a server: its address, its command, the process."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from adaptpo.config.generation import EngineSettings
from adaptpo.errors import ConfigError
from adaptpo.generation.dialects import DIALECTS
from adaptpo.generation.process import Server, StartedServer, words_of
from adaptpo.remote.endpoint import Access, key_from_environment, require_openai

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def access(settings: EngineSettings, url: str) -> Access:
    """A server whose seed is shared gets one request at a time."""
    at_once = 1 if DIALECTS[settings.spoken].shared_seed else settings.concurrency
    return Access(url, key_from_environment(settings.api_key_env), at_once, settings.retries, settings.timeout)


def started_server(
    settings: EngineSettings, model: str, log: Path, dtype: torch.dtype, longest: int, trusts_code: bool = False
) -> Server:
    """A server for the model in a folder, once it is up. `longest`: tokens of a prompt with its response."""
    command = settings.command if settings.command is not None else vllm_command(settings, dtype, longest, trusts_code)
    server = StartedServer(command, model, log, settings.start_timeout, settings.restarts)
    server.start()
    return server


def vllm_command(settings: EngineSettings, dtype: torch.dtype, longest: int, trusts_code: bool = False) -> str:
    """vLLM's command. Sampling ignores the model's generation_config.json."""
    memory = settings.gpu_memory_utilization
    return " ".join(
        [
            "vllm serve {model} --host 127.0.0.1 --port {port} --generation-config vllm",
            f"--dtype {DTYPES[dtype]} --max-model-len {longest}",
            f"--tensor-parallel-size {settings.tensor_parallel_size}",
            f"--data-parallel-size {settings.data_parallel_size}",
            "--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching",
            *(["--trust-remote-code"] if trusts_code else []),
            *([] if memory is None else [f"--gpu-memory-utilization {memory:g}"]),
            *([settings.arguments] if settings.arguments else []),
        ]
    )


def check_server(settings: EngineSettings, top_k: int) -> None:
    """Checks the settings of a generation server before one is started. Raises ConfigError."""
    require_openai()
    key_from_environment(settings.api_key_env)
    if top_k and not DIALECTS[settings.spoken].samples_top_k:
        raise ConfigError(
            f"generation.top_k cannot be passed to an {settings.spoken} server; set it to 0, or set generation.api"
        )
    if settings.base_url is None:
        program = words_of(settings.command or "vllm", "", 0)[0]
        if shutil.which(program) is None:
            raise ConfigError(f"generation needs the program '{program}', which is not on PATH; install it")
