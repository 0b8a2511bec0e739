"""MetaAPO over two iterations with vLLM, once with a server for each phase and once with one server for the run.

    python benchmarks/vllm_restarts.py --program .vllm/bin/vllm --model real-model --data PAIRS.jsonl

Both runs have the same recipe and seed. Prints the seconds of their generation phases, and how many responses are the
same token for token. Every phase first checks that the server's greedy tokens are the policy's own. For vLLM on a CPU
(`make vllm`); on a GPU, leave out `--cpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from adaptpo import AlignmentConfig, AlignmentTrainer, methods
from adaptpo.data.files import read_file
from adaptpo.run.state import read_state

ON_CPU = "--enforce-eager --no-enable-chunked-prefill --max-num-batched-tokens 8192"
"""Without the last two, seeded sampling fails on a CPU."""


def align(options: argparse.Namespace, out: Path, reload: bool) -> None:
    generation: dict[str, Any] = {"engine": "vllm", "program": options.program, "max_new_tokens": 48, "reload": reload}
    AlignmentTrainer(
        model=options.model,
        args=AlignmentConfig(
            output_dir=str(out),
            num_iterations=2,
            warmup_epochs=0,
            max_prompt_length=256,
            generation=generation | ({"arguments": ON_CPU, "concurrency": options.concurrency} if options.cpu else {}),
            training={"learning_rate": 1e-5, "per_device_train_batch_size": 2, "use_cpu": options.cpu},
            show_progress=False,
        ),
        method=methods.metaapo(num_generations=4),
        train_dataset=list(itertools.islice(read_file(Path(options.data)), options.prompts)),
        reward_funcs=brief,
    ).train()


def brief(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    return [-float(len(str(completion))) for completion in completions]


def generation_seconds(out: Path) -> list[float]:
    phases = read_state(out)["phases"]
    return [facts["seconds"] for name, facts in phases.items() if name.endswith("/generate")]


def responses(out: Path) -> dict[tuple[str, int, int], list[int]]:
    """The token ids of every response, by iteration, prompt and number."""
    found = {}
    for path in sorted(out.glob("iterations/*/responses/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            found[path.parts[-3], row["prompt_id"], row["index"]] = row["ids"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="vllm", help="the program of vLLM")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="preference pairs")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.cpu:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: Path(folder) / name for name in ("a server for each phase", "one server")}
        for name, out in outs.items():
            align(options, out, reload=name == "one server")
            found[name] = generation_seconds(out)
            print(f"{name}: generation took {found[name]} s, together {sum(found[name]):.1f} s", flush=True)
        one, other = map(responses, outs.values())
    same = sum(ids == other.get(key) for key, ids in one.items())
    found |= {"responses": len(one), "same token for token": same}
    print(f"{same} of {len(one)} responses are the same token for token")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
