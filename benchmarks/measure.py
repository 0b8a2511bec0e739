"""Alternated measurements: ratios between variants that ran in one process, one after the other, again and again."""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

LIBRARIES = ("torch", "transformers", "trl", "accelerate")


@dataclass(frozen=True)
class Ratio:
    """How many times faster (or smaller) `variant` is than `against`: the median over repetitions, each repetition
    being a ratio of neighbours in time, and the lowest and the highest of them."""

    case: str
    variant: str
    against: str
    ratio: float
    spread: tuple[float, float]


Clock = Callable[[], float]


def seconds(function: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    gc.collect()
    synchronize()
    start = clock()
    function()
    synchronize()
    return clock() - start


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(
    variants: dict[str, Callable[[], object]], repeats: int, warm_up: bool = True, clock: Clock = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every variant, `repeats` times in turn; with `warm_up`, a first turn does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + warm_up):
        for name, function in variants.items():
            taken = seconds(function, clock)
            if turn >= warm_up:
                times[name].append(taken)
    return times


def compare(case: str, variant: str, against: str, costs: dict[str, list[float]]) -> Ratio:
    ratios = [other / own for own, other in zip(costs[variant], costs[against], strict=True)]
    return Ratio(case, variant, against, round(median(ratios), 3), (round(min(ratios), 3), round(max(ratios), 3)))


def show(ratio: Ratio, costs: dict[str, list[float]]) -> None:
    own, other = (1000 * median(costs[name]) for name in (ratio.variant, ratio.against))
    low, high = ratio.spread
    print(
        f"{ratio.case:28s} {ratio.variant:24s} {own:8.0f} ms   {ratio.against:30s} {other:8.0f} ms   "
        f"{ratio.ratio:5.2f}x  ({low:.2f} to {high:.2f})",
        flush=True,
    )


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; a few minutes on 2 cores")
    parser.add_argument("--json", type=Path, help="write the ratios to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratios to this file (PNG)")
    parser.add_argument("--threads", type=int, default=1, help="threads of one operation (default 1)")
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    print(machine(parsed.threads), flush=True)
    return parsed


def machine(threads: int) -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"{device}, {threads} thread(s); " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def processor() -> str:
    facts = Path("/proc/cpuinfo")
    names = [line for line in facts.read_text().splitlines() if line.startswith("model name")] if facts.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def finish(ratios: list[Ratio], options: argparse.Namespace, title: str) -> None:
    if options.json:
        options.json.write_text(json.dumps([asdict(ratio) for ratio in ratios], indent=1) + "\n")
    if options.plot:
        draw(ratios, options.plot, title)


def draw(ratios: list[Ratio], path: Path, title: str) -> None:
    """One bar a ratio, coloured by what it is measured against, with its spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 1.4 + 0.32 * len(ratios)), constrained_layout=True)
    rivals = list(dict.fromkeys((ratio.variant, ratio.against) for ratio in ratios))
    for number, (variant, against) in enumerate(rivals):
        places = [i for i, ratio in enumerate(ratios) if (ratio.variant, ratio.against) == (variant, against)]
        values = [ratios[i].ratio for i in places]
        errors = [[abs(ratios[i].ratio - ratios[i].spread[side]) for i in places] for side in (0, 1)]
        axes.barh(places, values, xerr=errors, color=f"C{number}", label=f"{variant} against {against}", capsize=2)
        for place, value in zip(places, values, strict=True):
            axes.text(value + 0.04, place - 0.3, f"{value:.2f}", va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(ratios)), [ratio.case for ratio in ratios], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times as fast")
    axes.set_title(title)
    axes.legend(fontsize=7, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)
