"""The engine that samples, and its settings: the part of a recipe's `generation` beside the sampling parameters."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from adaptpo.config.base import Command, PathText, Settings, Url, Variable
from adaptpo.config.numbers import Attempts, Concurrency, Count, Positive, PositiveFraction, Seconds

Api = Literal["vllm", "sglang", "transformers", "openai"]
SAID_BY_COMMAND: dict[str, Api] = {"vllm": "vllm", "sglang": "sglang", "transformers": "transformers"}
"""The API of a server whose command contains the word."""

IN_PROCESS = ("batch_size", "memory_gb")
REACHED = ("api_key_env", "concurrency", "retries", "timeout", "reload")
STARTED = ("start_timeout", "restarts")
READ_BY: dict[str, tuple[str, ...]] = {
    "transformers": IN_PROCESS,
    "server": ("base_url", "command", "api", "served_model", *REACHED, *STARTED),
    "vllm": (
        *("tensor_parallel_size", "data_parallel_size", "prefix_caching", "gpu_memory_utilization", "arguments"),
        *("program", "concurrency", "retries", "timeout", "reload", *STARTED),
    ),
}
"""The keys of each engine."""


class EngineSettings(Settings):
    """The engine that samples."""

    engine: Literal["transformers", "server", "vllm"] = "transformers"
    """`transformers` samples in the process; a `server` runs at `base_url` or is started by `command`; `vllm` is such
    a server, with its command built from the keys here."""
    batch_size: Count | None = None
    """Prompts sampled at once by `transformers`; null takes as many as fit into `memory_gb`."""
    memory_gb: Positive | None = None
    """GiB that sampling by `transformers` may take; null is 40 % of an accelerator's memory, and 1 GiB on a CPU."""
    base_url: Url | None = None
    """Address of a running server, with `/v1`."""
    command: Command | None = None
    """Command that starts a server; it contains `{model}` and `{port}`."""
    api: Api | None = None
    """The server's API; null is inferred from the command, and is `openai` for a `base_url`."""
    served_model: PathText | None = None
    """The policy's name at the server; null is its path."""
    api_key_env: Variable | None = None
    """Environment variable that holds the server's key."""
    concurrency: Concurrency = 64
    """Requests at a time, of each vLLM replica. A server of transformers always gets one at a time, as it computes one
    at a time."""
    retries: Attempts = 4
    """Attempts after the first."""
    timeout: Seconds = 600.0
    """Seconds for a whole answer."""
    start_timeout: Seconds = 900.0
    """Seconds until a started server must be up."""
    restarts: Attempts = 2
    """How often a server that died is restarted in a phase."""
    reload: bool = True
    """Whether a vLLM that runs takes the weights of each phase's policy; false starts one for each phase, and leaves
    the weights of a running server as they are."""
    program: PathText = "vllm"
    """The program of vLLM, such as `.vllm/bin/vllm` in an environment of its own."""
    tensor_parallel_size: Count = 1
    """Accelerators of one vLLM replica."""
    data_parallel_size: Count | None = None
    """Number of vLLM replicas; null is one for every `tensor_parallel_size` processes of the run on its machine."""
    prefix_caching: bool = True
    """Whether a prompt's responses share its cache in vLLM."""
    gpu_memory_utilization: PositiveFraction | None = None
    """Share of the accelerator's memory for vLLM; null is vLLM's default."""
    arguments: Command = ""
    """Further arguments of `vllm serve`."""

    @property
    def memory(self) -> int | None:
        """`memory_gb` in bytes."""
        return None if self.memory_gb is None else int(self.memory_gb * 2**30)

    @property
    def spoken(self) -> Api:
        """The server's API."""
        if self.engine == "vllm":
            return "vllm"
        return self.api or said_by(self.command) or "openai"

    @model_validator(mode="after")
    def _keys_are_read(self) -> EngineSettings:
        """Refuses keys that the engine would not read."""
        for name, field in EngineSettings.model_fields.items():
            engines = [engine for engine, names in READ_BY.items() if name in names]
            if engines and self.engine not in engines and getattr(self, name) != field.default:
                raise ValueError(f"{name} is not read by engine {self.engine}, only by {' and '.join(engines)}")
        if self.engine == "server":
            self._check_server()
        return self

    def _check_server(self) -> None:
        if (self.base_url is None) == (self.command is None):
            raise ValueError("engine server needs either base_url, of a running server, or command, which starts one")
        for place in ("{model}", "{port}"):
            if self.command is not None and place not in self.command:
                raise ValueError(f"command holds no {place}; write for instance 'vllm serve {{model}} --port {{port}}'")
        if self.command is not None and self.api is None and said_by(self.command) is None:
            raise ValueError(f"set api to the API of the command's server: {', '.join(SAID_BY_COMMAND)} or openai")
        if self.command is None and (self.start_timeout, self.restarts) != (900.0, 2):
            raise ValueError("start_timeout and restarts apply only to a server that command starts")
        if not self.reload and (self.command is not None or self.spoken != "vllm"):
            raise ValueError("reload applies only to engine vllm, and to a vLLM at base_url (api: vllm)")


def said_by(command: str | None) -> Api | None:
    return next((api for word, api in SAID_BY_COMMAND.items() if word in (command or "")), None)
