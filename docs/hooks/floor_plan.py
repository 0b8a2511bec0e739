"""Draws docs/images/architecture.svg from the table of allowed imports: `python docs/hooks/floor_plan.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRAWING = ROOT / "docs" / "images" / "architecture.svg"

HOLDS = {
    "cli": "one file per command",
    "trainer": "AlignmentTrainer",
    "sandbox": "world with a true reward",
    "plan": "cost before a run",
    "evaluation": "benchmarks",
    "vote": "blind vote",
    "report": "page of a run",
    "methods": "the named methods",
    "pipeline": "loop, one file per phase",
    "choices": "selection, pairing, objective, weighting",
    "training": "step, trainers, look-ahead",
    "stage": "boundary score",
    "generation": "engines that sample",
    "annotation": "reward models, judges",
    "models": "forward passes, packing",
    "remote": "one HTTP client",
    "data": "rows to tokens",
    "run": "everything on disk",
    "distributed": "ranks, Ray, local",
    "config": "every recipe key",
}
FLOW = (
    ("data", "PreferencePair"),
    ("score", "margins"),
    ("select", "prompts"),
    ("generate", "responses"),
    ("annotate", "rewards"),
    ("pair", "PromptGroup"),
    ("train", "policy"),
)
"""The phases of an iteration, and what each hands on."""
WIDTH, HEIGHT, GAP, MARGIN = 168, 50, 12, 16
FONT = "font-family='ui-sans-serif, Helvetica, Arial, sans-serif'"


def levels(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The folders by the longest chain of imports below them, the topmost first."""
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((measure(inner) for inner in imports[name] if inner in HOLDS), default=-1)
        return depth[name]

    for name in HOLDS:
        measure(name)
    rows: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in HOLDS:
        rows[depth[name]].append(name)
    return rows[::-1]


def box(name: str, x: float, y: float) -> str:
    fill = "#e8eaf6" if name in ("choices", "methods") else "#ffffff"
    middle = x + WIDTH / 2
    return (
        f"<rect x='{x:g}' y='{y:g}' width='{WIDTH}' height='{HEIGHT}' rx='6' fill='{fill}' stroke='#5c6bc0'/>"
        f"<text x='{middle:g}' y='{y + 21:g}' font-weight='600' font-size='14'>{escape(name)}</text>"
        f"<text x='{middle:g}' y='{y + 38:g}' font-size='10' fill='#444'>{escape(shortened(HOLDS[name]))}</text>"
    )


def flow(y: float, width: float) -> list[str]:
    """The phases from left to right, with what flows between them over the arrows."""
    step = (width - 2 * MARGIN) / len(FLOW)
    parts = []
    for number, (phase, hands_on) in enumerate(FLOW):
        x = MARGIN + number * step
        parts.append(f"<text x='{x + 26:g}' y='{y + 30:g}' font-size='12' font-weight='600'>{phase}</text>")
        parts.append(f"<text x='{x + 24 + step / 2:g}' y='{y + 16:g}' font-size='9' fill='#444'>{hands_on}</text>")
        arrow = f"M{x + 58:g},{y + 26:g} h{step - 68:g} m-5,-4 l5,4 l-5,4"
        parts.append(f"<path d='{arrow}' fill='none' stroke='#5c6bc0'/>")
    return parts


def shortened(text: str) -> str:
    return text if len(text) <= 30 else "the four choices, learners"


def drawing(imports: Mapping[str, set[str]]) -> str:
    rows = levels(imports)
    width = max(map(len, rows)) * (WIDTH + GAP) - GAP + 2 * MARGIN
    height = len(rows) * (HEIGHT + GAP) + 2 * MARGIN + HEIGHT
    parts = [f"<rect width='{width}' height='{height}' rx='10' fill='#fafafa'/>"]
    for level, names in enumerate(rows):
        start = (width - len(names) * (WIDTH + GAP) + GAP) / 2
        y = MARGIN + level * (HEIGHT + GAP)
        parts += [box(name, start + number * (WIDTH + GAP), y) for number, name in enumerate(names)]
    parts += flow(MARGIN + len(rows) * (HEIGHT + GAP), width)
    label = "The folders of adaptpo in rows; a folder imports only from rows below its own"
    size = f"xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}'"
    head = f"<svg {size} {FONT} text-anchor='middle' role='img'>"
    return f"{head}\n<title>{label}</title>\n" + "\n".join(parts) + "\n</svg>\n"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from tests.test_architecture import MAY_IMPORT

    DRAWING.write_text(drawing(MAY_IMPORT), "utf-8")
