"""What a GPU does with adaptpo: one command measures all of it and writes the table and the planner's file.

    python benchmarks/gpu.py --device cuda --shape 1b --bf16 --json 1b.json --measured measured.json
    python benchmarks/gpu.py --table smol.json 1b.json > table.md

Variants take turns in one process. A section that needs what is not there says so and is left out.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_inference
import gpu_steps
import gpu_trainers
import torch
from gpu_material import SHAPES, Row, Setting, matrix_rate, significant
from measure import machine

from adaptpo.distributed.quiet import quiet_libraries
from adaptpo.plan.machines import ACCELERATORS
from adaptpo.plan.model import shape_of
from adaptpo.plan.throughput import GenerationMeasured, PassesMeasured, Throughput

SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    "exactness": gpu_steps.exactness,
    "launches": gpu_steps.waits_and_launches,
    "group": gpu_steps.group_step,
    "head": gpu_steps.head_forms,
    "dpo": gpu_trainers.dpo,
    "liger": gpu_trainers.liger,
    "metapo": gpu_trainers.metapo,
    "scoring": gpu_inference.scoring,
    "annotation": gpu_inference.annotation,
    "generation": gpu_inference.generation,
}


def measure(
    setting: Setting, sections: Sequence[str], out: Path | None, header: dict[str, Any]
) -> tuple[list[Row], list[str]]:
    """The rows, and the sections that failed."""
    rows: list[Row] = []
    failed: list[str] = []
    for name in sections:
        started = time.perf_counter()
        try:
            for found in SECTIONS[name](setting):
                rows.append(found)
                print(line(found), flush=True)
        except Exception:  # noqa: BLE001 - What the other sections find must not be lost.
            failed.append(name)
            print(f"{name}: failed\n{traceback.format_exc()}", flush=True)
        print(f"# {name}: {time.perf_counter() - started:.0f} s", flush=True)
        gc.collect()
        if setting.device == "cuda":
            torch.cuda.empty_cache()
        if out is not None:
            told = header | {"failed": failed, "rows": [found.record() for found in rows]}
            out.write_text(json.dumps(told, indent=1) + "\n")
    return rows, failed


def line(found: Row) -> str:
    facts = ", ".join(f"{k} {v if isinstance(v, str) else significant(v)}" for k, v in found.facts.items())
    peak = "" if found.peak_gb is None else f"{found.peak_gb:6.1f} GB  "
    return f"{found.section:20s} {found.case:22s} {found.variant:24s} {1000 * found.seconds:9.1f} ms  {peak}{facts}"


def table(files: Sequence[Path]) -> str:
    """Markdown; a variant's ratio is that of its section's last variant with the name adaptpo or of the first one."""
    lines: list[str] = []
    for path in files:
        told = json.loads(path.read_text())
        lines += [f"### `{told['shape']}` on {told['machine']}", ""]
        lines += ["| section | case | variant | ms | GB | ratio | further |", "|---|---|---|--:|--:|--:|---|"]
        lines += [table_row(row, told["rows"]) for row in told["rows"]]
        lines.append("")
    return "\n".join(lines)


def table_row(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    same = [r for r in rows if (r["section"], r["case"]) == (row["section"], row["case"])]
    own = next((r for r in same if r["variant"] in ("adaptpo", gpu_steps.VARLEN)), same[0])
    timed = row["seconds"] > 0
    ratio = f"{row['seconds'] / own['seconds']:.2f}" if timed and own["seconds"] else ""
    facts = ", ".join(
        f"{key.replace('_', ' ')} {value if isinstance(value, str) else significant(value)}"
        for key, value in row["facts"].items()
    )
    peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
    taken = significant(1000 * row["seconds"]) if timed else ""
    return f"| {row['section']} | {row['case']} | {row['variant']} | {taken} | {peak} | {ratio} | {facts} |"


def throughput(setting: Setting, rows: Sequence[Row]) -> Throughput:
    """The planner's file: the rates of adaptpo's own rows."""
    peak = peak_flops(torch.cuda.get_device_name() if setting.device == "cuda" else "cpu")

    def passes(section: str, variant: str) -> PassesMeasured | None:
        found = next((r for r in rows if (r.section, r.variant) == (section, variant)), None)
        if found is None:
            return None
        share = float(found.facts["tflops"]) * 1e12 / peak
        return PassesMeasured(tokens_per_second=float(found.facts["tokens_per_second"]), share_of_peak=share)

    sampled = next((r for r in rows if (r.section, r.variant) == ("generation", "adaptpo")), None)
    rate = None if sampled is None else float(sampled.facts["tokens_per_second"])
    return Throughput(
        device=torch.cuda.get_device_name() if setting.device == "cuda" else "cpu",
        shape=setting.shape,
        parameters=shape_of(setting.config()).parameters,
        dtype="bfloat16" if setting.bf16 else "float32",
        peak_flops=peak,
        training=passes("dpo", "adaptpo"),
        scoring=passes("scoring", "adaptpo"),
        annotation=passes("annotation", "bfloat16" if setting.bf16 else "float32"),
        generation=None if rate is None else GenerationMeasured(engine="transformers", tokens_per_second=rate),
    )


def peak_flops(device: str) -> float:
    """The data sheet's dense bfloat16 peak of a GPU, by its name."""
    known = {name: facts.tflops * 1e12 for name, facts in ACCELERATORS.items() if name in device.lower()}
    return next(iter(known.values()), 1e12)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--bf16", action="store_true", help="weights in float32, matrix products in bfloat16")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a training pass (default 8192)")
    parser.add_argument("--scale", type=int, default=1, help="divides all lengths; for trying it out without a GPU")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--measured", type=Path, help="write the file that `adaptpo plan --measured` reads")
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of these files instead of measuring")
    return parser.parse_args()


def main() -> None:
    given = options()
    if given.table:
        print(table(given.table))
        return
    quiet_libraries()
    setting = Setting(given.device, given.shape, given.bf16, given.repeats, given.tokens, given.scale)
    dtype = torch.bfloat16 if given.bf16 else torch.float32
    rate = matrix_rate(given.device, dtype, 8192 if given.device == "cuda" else 256)
    header = {"machine": machine(torch.get_num_threads()), "shape": given.shape, "matrix_tflops": rate / 1e12}
    print(f"{header['machine']}; a matrix product runs at {significant(rate / 1e12)} TFLOP/s", flush=True)
    rows, failed = measure(setting, given.only, given.json, header)
    if given.measured:
        given.measured.write_text(throughput(setting, rows).model_dump_json(indent=1) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
