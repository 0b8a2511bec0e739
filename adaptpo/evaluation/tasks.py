"""General tasks by lm-eval: what alignment must not cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adaptpo.config.base import nearest
from adaptpo.distributed.device import fastest_device
from adaptpo.errors import ConfigError, DataError
from adaptpo.models.adapters import adapter_settings, base_of, base_options
from adaptpo.models.loading import load_tokenizer
from adaptpo.run.files import write_json
from adaptpo.run.progress import caution
from adaptpo.types import Row

SHOTS: dict[str, int | None] = {
    "gsm8k_cot": 8,
    "mmlu": 5,
    "arc_challenge": 25,
    "eq_bench": None,
    "truthfulqa_mc2": None,
    "ifeval": None,
}
"""The papers' tasks with their examples in the prompt; None is the task's own number."""
CHAT_TEMPLATE = "apply_chat_template"
NEEDED = "general tasks need lm-eval: pip install 'adaptpo[eval]'"
STDERR = "_stderr"
Z = 1.96


@dataclass(frozen=True)
class Tasks:
    """`names`: tasks of lm-eval, none for the papers'; `include`: a folder of further task files; `limit`: documents of
    a task at most; `apply_chat_template`: whether prompts go through the tokenizer's chat template, the examples as
    turns of their own."""

    model: str
    names: tuple[str, ...] = ()
    include: Path | None = None
    limit: int | None = None
    batch_size: int = 8
    seed: int = 0
    apply_chat_template: bool = False


def run_tasks(tasks: Tasks, out: Path | None = None) -> list[Row]:
    """One row a task, filter and metric. `interval` is the value plus and minus 1.96 of lm-eval's standard errors.

    Raises ConfigError for an unknown task, a missing chat template, or where lm-eval is missing; DataError where the
    data of a task are out of reach.
    """
    manager = task_manager(tasks)
    names = tasks.names or tuple(SHOTS)
    check_names(names, manager)
    model = loaded(tasks)
    check_chat_template(tasks, bool(model.tokenizer.chat_template))
    rows = [row for name in names for row in task_rows(evaluated(name, model, manager, tasks), tasks)]
    if out is not None:
        settings = {"model": tasks.model, "seed": tasks.seed, "limit": tasks.limit}
        write_json(out, settings | {CHAT_TEMPLATE: tasks.apply_chat_template, "results": rows})
    return rows


def check_chat_template(tasks: Tasks, has_one: bool) -> None:
    """Says where there is one that is not applied. Raises ConfigError where one is to be applied and there is none."""
    if tasks.apply_chat_template and not has_one:
        raise ConfigError(f"the tokenizer of '{tasks.model}' has no chat template; leave --apply-chat-template out")
    caution(
        f"'{tasks.model}' has a chat template, and it is not applied: the prompts are lm-eval's plain text; "
        "--apply-chat-template asks the model as a chat",
        has_one and not tasks.apply_chat_template,
    )


def task_manager(tasks: Tasks) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(NEEDED) from error
    if tasks.include is not None and not tasks.include.is_dir():
        raise ConfigError(f"--include {tasks.include}: no such folder; name one that holds task files of lm-eval")
    return TaskManager(include_path=None if tasks.include is None else str(tasks.include))


def check_names(names: Sequence[str], manager: Any) -> None:
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"lm-eval knows no task '{unknown[0]}'; {nearest(unknown[0], list(manager.all_tasks))}")


def loaded(tasks: Tasks) -> Any:
    """The model for lm-eval, in the precision of its weights."""
    from lm_eval.models.huggingface import HFLM

    device = str(fastest_device())
    parts = parts_of(tasks.model)
    try:
        return HFLM(**parts, device=device, batch_size=tasks.batch_size, dtype="auto")
    except (OSError, ValueError) as error:
        raise ConfigError(f"lm-eval cannot load '{tasks.model}': {str(error).strip().splitlines()[0]}") from error


def parts_of(path: str) -> dict[str, Any]:
    """What lm-eval takes for a model: an adapter is named beside the model that it was trained on."""
    settings, base = adapter_settings(path), base_of(path)
    if settings is None or base is None:
        return {"pretrained": path}
    of_base = base_options(settings, {})
    return {"pretrained": base, "peft": path, "tokenizer": load_tokenizer(path), **of_base}


def evaluated(name: str, model: Any, manager: Any, tasks: Tasks) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    try:
        return simple_evaluate(
            model=model,
            tasks=[name],
            num_fewshot=SHOTS.get(name),
            batch_size=tasks.batch_size,
            limit=tasks.limit,
            task_manager=manager,
            log_samples=False,
            apply_chat_template=tasks.apply_chat_template,
            fewshot_as_multiturn=tasks.apply_chat_template,
            random_seed=tasks.seed,
            numpy_random_seed=tasks.seed,
            torch_random_seed=tasks.seed,
            fewshot_random_seed=tasks.seed,
        )
    except (OSError, ConnectionError) as error:
        raise DataError(
            f"task '{name}': its data are out of reach ({str(error).strip().splitlines()[0]}); without a network name "
            "task files with local data in --include"
        ) from error


def task_rows(found: dict[str, Any], tasks: Tasks) -> Iterator[Row]:
    """Of a task and its subtasks, every metric and variant."""
    for name, values in found["results"].items():
        for key, value in values.items():
            metric, _, variant = key.partition(",")
            if isinstance(value, int | float) and variant and not metric.endswith(STDERR):
                error = values.get(f"{metric}{STDERR},{variant}")
                yield {
                    "task": name,
                    "shots": found.get("n-shot", {}).get(name),
                    "metric": metric if variant == "none" else f"{metric} ({variant})",
                    "value": value,
                    "interval": [value - Z * error, value + Z * error] if isinstance(error, int | float) else None,
                    "kind": "normal, from lm-eval's standard error",
                    "n": found.get("n-samples", {}).get(name, {}).get("effective"),
                    "model": tasks.model,
                    CHAT_TEMPLATE: tasks.apply_chat_template,
                }
