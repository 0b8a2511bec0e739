"""A run in one environment, killed, and resumed in another: locale, PYTHONHASHSEED, threads, TMPDIR, HOME, folder."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.campaign.commands import ROOT
from tests.campaign.kills import KILLED, log_of, remove, start_of, straight
from tests.campaign.outcomes import Nonsense
from tests.runs import assert_same_run

CODE = """
import sys
from pathlib import Path
from tests import preload
from tests.campaign.commands import Train
recipe, out, log, moment = sys.argv[1:]
Train(Path(recipe), Path(out), Path(log), moment=float(moment) if moment else None).run()
"""


def environment(rng: random.Random, folder: Path) -> dict[str, str]:
    """Drawn variables; `TMPDIR` and `HOME` exist, are new and empty, or cannot be written to."""
    places = ["", str(folder / "new"), "/nonexistent", "/proc"]
    drawn = {
        "PYTHONHASHSEED": rng.choice(["0", "1", "4294967295", "random"]),
        "LC_ALL": rng.choice(["C", "C.UTF-8", "POSIX", "tr_TR.UTF-8", "nowhere"]),
        "LANG": rng.choice(["", "de_DE", "C"]),
        "OMP_NUM_THREADS": rng.choice(["1", "2", "7"]),
        "TZ": rng.choice(["UTC", "Asia/Kathmandu", "nowhere"]),
        "HOME": rng.choice(places),
        "TMPDIR": rng.choice(places[:2]),
        "PYTHONUTF8": rng.choice(["0", "1"]),
        "COLUMNS": rng.choice(["1", "0", "10000"]),
    }
    (folder / "new").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in drawn}
    return kept | {name: value for name, value in drawn.items() if value} | {"PYTHONPATH": str(ROOT)}


def begun(out: Path, moment: float | None, environ: dict[str, str]) -> int:
    one = start_of("plain", out)
    given = [str(one.recipe), str(out), str(one.log), "" if moment is None else str(moment)]
    command = [sys.executable, "-c", CODE, *given]
    place = environ.get("TMPDIR", "/")
    return subprocess.run(command, env=environ, cwd=place, timeout=600, capture_output=True).returncode


def another_environment(rng: random.Random, folder: Path) -> None:
    reference, longest = straight("plain", folder)
    out = folder / f"elsewhere-{rng.randrange(10**9)}"
    codes = [begun(out, moment, environment(rng, folder)) for moment in (rng.uniform(0.2, longest), None)]
    if codes not in ([KILLED, 0], [0, 0]):
        raise Nonsense(f"it ends with {codes}\n{log_of(out)}")
    assert_same_run(reference, out)
    remove(out)
