"""From the settings of `generation` to what reaches a server: its address, its command, the process."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from adaptpo.config.generation import EngineSettings
from adaptpo.errors import ConfigError
from adaptpo.generation.dialects import DIALECTS
from adaptpo.generation.lease import lease_of
from adaptpo.generation.process import RunningServer, StartedServer, words_of
from adaptpo.generation.weights import DEVELOPMENT, ReloadError, Weights
from adaptpo.remote.endpoint import Access, key_from_environment, require_openai

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

SHARDS = 16
"""Maximum number of shards in flight at a server."""
SLEEP_MODE = " --enable-sleep-mode"


def access(settings: EngineSettings, url: str) -> Access:
    """A server whose seed is shared gets one request at a time."""
    key = key_from_environment(settings.api_key_env)
    return Access(url, key, requests_at_once(settings), settings.retries, settings.timeout)


def requests_at_once(settings: EngineSettings) -> int:
    return 1 if DIALECTS[settings.spoken].shared_seed else settings.concurrency * replicas(settings)


def replicas(settings: EngineSettings) -> int:
    return settings.data_parallel_size or 1


def shards_at_once(settings: EngineSettings) -> int:
    """Shards in flight, so that a server does not run empty at the end of each; 1 for the engine in the process."""
    return 1 if settings.engine == "transformers" else min(SHARDS, requests_at_once(settings))


def running_server(settings: EngineSettings, policy: str, folder: Callable[[], str]) -> RunningServer:
    """The server at `base_url`. A vLLM that takes weights while it runs is given those of the policy, in `folder`.
    Raises GenerationError if another run does that with it now."""
    assert settings.base_url is not None
    model = settings.served_model or policy
    if not (settings.reload and settings.spoken == "vllm"):
        return RunningServer(settings.base_url, model)
    lease = lease_of(settings.base_url.rstrip("/"))
    try:
        return RunningServer(settings.base_url, model, load_weights(settings, folder()), lease)
    except BaseException:
        lease.give_back()
        raise


def load_weights(settings: EngineSettings, folder: str) -> str:
    """Returns why the server at `base_url` did not take the weights in the folder; empty if it did."""
    address = str(settings.base_url).rstrip("/").removesuffix("/v1")
    try:
        Weights(address, settings.timeout, key_from_environment(settings.api_key_env)).load(folder)
    except ReloadError as error:
        return str(error)
    return ""


def started_server(
    settings: EngineSettings,
    model: str,
    log: Path,
    dtype: torch.dtype,
    longest: int,
    trusts_code: bool = False,
    kept: bool = False,
) -> StartedServer:
    """A server for the model in a folder, once it is up. `longest`: tokens of a prompt with its response; `kept`: it
    will get other weights."""
    command, environment = settings.command, dict[str, str]()
    reloads = kept and settings.reload and command is None and (sleeps() or not torch.cuda.is_available())
    if command is None:
        command = vllm_command(settings, dtype, longest, trusts_code) + (SLEEP_MODE if reloads and sleeps() else "")
        environment = DEVELOPMENT if reloads else {}
    server = StartedServer(
        command, model, log, settings.start_timeout, settings.restarts, environment, reloads, reloads and sleeps()
    )
    server.start()
    return server


def sleeps() -> bool:
    """Whether vLLM can free this machine's accelerator while it runs."""
    return torch.cuda.is_available() and torch.version.hip is None


def vllm_command(settings: EngineSettings, dtype: torch.dtype, longest: int, trusts_code: bool = False) -> str:
    """vLLM's command. Sampling ignores the model's generation_config.json."""
    memory = settings.gpu_memory_utilization
    return " ".join(
        [
            f"{shlex.quote(settings.program)} serve {{model}} --host 127.0.0.1 --port {{port}}",
            "--generation-config vllm",
            f"--dtype {DTYPES[dtype]} --max-model-len {longest}",
            f"--tensor-parallel-size {settings.tensor_parallel_size}",
            f"--data-parallel-size {replicas(settings)}",
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
        program = words_of(settings.command or shlex.quote(settings.program), "", 0)[0]
        if shutil.which(program) is None:
            key = "program" if settings.engine == "vllm" else "command"
            raise ConfigError(
                f"generation needs the program '{program}', which is not on PATH; install it, or write its path in "
                f"generation.{key}"
            )
