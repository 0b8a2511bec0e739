"""A sandbox world as a world of the tables: built from its settings, measured by the true reward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptpo.config.recipe import load_recipe
from adaptpo.errors import RunError
from adaptpo.report.reading import RunData, read_json
from adaptpo.run.files import write_json
from adaptpo.sandbox.build import build
from adaptpo.sandbox.candidates import KINDS, write_candidates
from adaptpo.sandbox.check import heldout_prompts
from adaptpo.sandbox.sampling import OWN, Decoding, sample_responses
from adaptpo.sandbox.settings import WorldSettings
from adaptpo.sandbox.tables.measure import Measurement, Responses, measure
from adaptpo.sandbox.tables.row import Row
from adaptpo.sandbox.tables.world import Score, folder_of
from adaptpo.sandbox.world import reward_terms

RESPONSES, SAMPLING_SEED = 4, 1
BATCH = "per_device_train_batch_size"


@dataclass(frozen=True)
class SandboxWorld:
    """A sandbox world. Held-out responses lie in `responses/<name>`, models that worlds share in `models`."""

    settings: WorldSettings

    score: ClassVar[Score] = Score(
        "true reward", "of four responses to each held-out prompt after the last iteration (optimum 1)"
    )
    measurement: ClassVar[type[Measurement]] = Measurement
    runs_are_units: ClassVar[bool] = False

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def name(self) -> str:
        """A name from what differs from the defaults: `prompts-3000_flipped-0.2/seed-0`."""
        named = {each.name: each.default for each in fields(WorldSettings) if each.default is not MISSING}
        values = {name: getattr(self.settings, name) for name in named if name not in ("prompts", "seed")}
        changed = [f"_{name}-{value}" for name, value in values.items() if value != named[name]]
        return f"prompts-{self.settings.prompts}{''.join(changed)}/seed-{self.seed}"

    @property
    def key(self) -> str:
        return self.name

    def varied(self, seed: int, changes: Mapping[str, Any]) -> SandboxWorld:
        return SandboxWorld(replace(self.settings, **changes, seed=seed))

    def command(self, table: str, options: str) -> str:
        return f"adaptpo sandbox table {table} {options} --prompts {self.settings.prompts}"

    def build(self, out: Path, rows: Sequence[Row]) -> None:
        """Builds the world unless it is complete, adds files of other pairs, and samples from its policy."""
        folder = folder_of(out, self)
        finished = folder / "world.json"
        if not finished.exists():
            build(folder, progress=False, cache=out / "models", **asdict(self.settings))
        elif plain(WorldSettings()) | json.loads(finished.read_text(encoding="utf-8")) != plain(self.settings):
            raise RunError(f"{folder} holds a world with other settings; choose another --out, or remove it")
        self.sample(out, None, OWN)
        for name in sorted({name for row in rows for name in candidates_of(row)}):
            write_candidates(folder, name)

    def assignments(self, recipe: Path, row: Row) -> tuple[str, ...]:
        """The row's settings and, for rows of equal length, the steps of an iteration. The table measures the policy
        itself, so the run evaluates nothing."""
        return (*self.steps(recipe, row), "eval_data=null", *row.settings)

    def steps(self, recipe: Path, row: Row) -> tuple[str, ...]:
        if row.epochs is None:
            return ()
        config = load_recipe(recipe, row.settings)
        prompts = ceil(self.settings.prompts / config.num_iterations)
        return (f"training.max_steps={ceil(row.epochs * prompts / config.training[BATCH])}",)

    def respond(self, out: Path, run: Path) -> None:
        """Samples as the run itself does, also from the SFT policy, with which it may be compared."""
        decoding = decoding_of(run)
        self.sample(out, None, decoding)
        self.sample(out, run, decoding)

    def sample(self, out: Path, run: Path | None, decoding: Decoding) -> None:
        """Samples four responses of a run's policy to each held-out prompt, unless the file is there; None: those of
        the SFT policy."""
        responses = self.responses(out, run, decoding)
        if not responses.exists():
            folder = folder_of(out, self)
            policy = folder / "policy" if run is None else run / "final"
            model, tokenizer = AutoModelForCausalLM.from_pretrained(policy), AutoTokenizer.from_pretrained(policy)
            prompts = heldout_prompts(folder)
            found = sample_responses(model, tokenizer, prompts, RESPONSES, SAMPLING_SEED, decoding=decoding)
            responses.parent.mkdir(parents=True, exist_ok=True)
            write_json(responses, {"prompts": prompts, "responses": found})

    def responses(self, out: Path, run: Path | None, decoding: Decoding = OWN) -> Path:
        """Where the held-out responses of a run's policy lie; None: those of the SFT policy."""
        place = Path(self.name) / "sft" if run is None else run.relative_to(out / "runs")
        return out / "responses" / place.with_name(f"{place.name}{decoding}.json")

    def measure(self, out: Path, run: Path, start: Path | None) -> Measurement:
        found, decoding = RunData.open(run), decoding_of(run)
        return measure(found, *(read_responses(self.responses(out, policy, decoding)) for policy in (run, start)))


def decoding_of(run: Path) -> Decoding:
    return Decoding.of(RunData.open(run).config["generation"])


def candidates_of(row: Row) -> list[str]:
    """The files of other pairs that a row, or one that it starts from, trains on."""
    own = [name for name in KINDS if f"data.path={name}" in row.settings]
    return own + (candidates_of(row.start) if row.start else [])


def plain(world: WorldSettings) -> dict[str, Any]:
    """The settings as JSON returns them."""
    return json.loads(json.dumps(asdict(world)))


def read_responses(path: Path) -> Responses:
    kept = read_json(path)
    pairs = [(prompt, text) for prompt, some in zip(*kept.values(), strict=True) for text in some]
    terms = [reward_terms(prompt, text) for prompt, text in pairs]
    words = [len(text.split()) for _, text in pairs]
    return Responses([each.total for each in terms], words, [each.count for each in terms])
