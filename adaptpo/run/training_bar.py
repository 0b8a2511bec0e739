"""The bar of a training phase. Apart, because transformers takes seconds to import; run directories do without it."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState, TrainingArguments

from adaptpo.run.progress import progress_bar


class TrainingBar(TrainerCallback):
    """A bar over the optimizer steps of a training phase, with its loss."""

    def __init__(self, phase: str, visible: bool) -> None:
        self.phase, self.visible = phase, visible
        self.bar: tqdm | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.bar = progress_bar(self.phase, state.max_steps, "step", self.visible, done=state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if self.bar is not None and "loss" in logs:
            self.bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        if self.bar is not None:
            self.bar.close()
