"""New weights for a vLLM that runs, through the endpoints that it has with VLLM_SERVER_DEV_MODE=1."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}
"""The environment in which vLLM has these endpoints. Whoever reaches them controls the server."""


class ReloadError(Exception):
    """The server did not take the weights, or is not able to; the message says why."""


@dataclass(frozen=True)
class Weights:
    """The weights of the vLLM at `address`, without `/v1`. `timeout`: maximum seconds of each call.

    The methods raise ReloadError.
    """

    address: str
    timeout: float
    api_key: str | None = None

    def load(self, folder: str) -> None:
        """Loads a model of the same configuration, and forgets what was computed with the weights before."""
        where = str(Path(folder).absolute()) if Path(folder).is_dir() else folder
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": where}})
        if not self._post("/reset_prefix_cache").get("success", True):
            raise ReloadError("the server did not reset its prefix cache, because it still answers requests")

    def sleep(self) -> None:
        """Frees the accelerator of weights and cache."""
        self._post("/sleep?level=2")

    def wake(self, folder: str) -> None:
        """Ends the sleep with the weights in the folder."""
        self._post("/wake_up?tags=weights")
        self.load(folder)
        self._post("/wake_up?tags=kv_cache")

    def _post(self, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        headers |= {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        request = urllib.request.Request(self.address + path, json.dumps(body or {}).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise ReloadError("the server was started without VLLM_SERVER_DEV_MODE=1") from error
            raise ReloadError(f"{path} failed with status {error.code}: {error.read()[:300]!r}") from error
        except (OSError, ValueError) as error:
            raise ReloadError(f"{path} failed: {error}") from error
