"""The floor plan: which folders there are, what may import what, and that only the choices know a method by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from adaptpo.choices.filters import FILTERS
from adaptpo.choices.learners.base import Learner
from adaptpo.choices.pairing import PAIRINGS
from adaptpo.choices.policy_update import POLICY_TRAINERS
from adaptpo.choices.selection import SELECTIONS
from adaptpo.choices.weighting import WEIGHTINGS
from adaptpo.methods import METHODS

PACKAGE = Path(__file__).parents[1] / "adaptpo"
ROOT_FILES = {"__init__", "__main__", "trainer", "types", "errors", "seeds"}
BELOW = {"types", "errors", "seeds"}
"""Root files that every folder may import."""

MAY_IMPORT: dict[str, set[str]] = {
    "config": set(),
    "data": set(),
    "choices": {"config"},
    "methods": {"choices", "config"},
    "distributed": {"config"},
    "run": {"config", "distributed"},
    "remote": {"config", "run"},
    "models": {"choices", "data", "distributed"},
    "annotation": {"config", "data", "models", "remote"},
    "generation": {"config", "data", "models", "remote"},
    "stage": {"annotation"},
    "training": {"choices", "distributed", "models", "run"},
    "pipeline": {"annotation", "choices", "config", "data", "distributed", "generation", "models", "remote", "run"}
    | {"stage", "training"},
    "trainer": {"choices", "config", "distributed", "methods", "pipeline"},
    "report": {"config", "run", "stage"},
    "evaluation": {"config", "data", "distributed", "generation", "models", "remote", "report", "run"},
    "plan": {"choices", "config", "data", "generation", "methods", "models", "pipeline", "run"},
    "vote": {"data", "report", "run"},
    "sandbox": {"annotation", "choices", "config", "data", "distributed", "generation", "methods", "report", "run"}
    | {"stage", "trainer"},
    "cli": {"annotation", "choices", "config", "data", "distributed", "evaluation", "methods", "pipeline", "plan"}
    | {"remote", "report", "run", "sandbox", "stage", "trainer", "vote"},
    "__init__": {"choices", "config", "methods", "trainer"},
    "__main__": {"cli"},
    "types": set(),
    "errors": set(),
    "seeds": set(),
}

KNOWS_METHODS = ("choices/", "methods/", "plan/published.py", "sandbox/")
"""The sandbox is a laboratory for named methods: its tables and its recipe name them."""
EXCEPTIONS: dict[str, set[str]] = {
    "config/recipe.py": {"metaapo"},  # The default of the key `method`.
    "cli/demo.py": {"metaapo"},
    "evaluation/presets.py": {"metaapo", "metapo"},  # The papers, whose evaluations these are.
    "training/ppo.py": {"PPO"},  # PPO's own mathematics and work.
    "training/ppo_trainer.py": {"PPO"},
    "training/rollouts.py": {"PPO"},
    "pipeline/iteration.py": {"PPO"},
    "pipeline/phases/ppo.py": {"PPO"},
}


@cache
def modules() -> Mapping[str, ast.Module]:
    """The syntax tree of each file, by its path below the package without `.py`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text("utf-8")) for path in files}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a file imports, at its top, in functions, or for types alone."""
    return frozenset(found for node in ast.walk(modules()[module]) for found in imported(node)) - {module}


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adaptpo":
        for alias in node.names:
            yield file_of(f"{node.module}.{alias.name}") or file_of(str(node.module)) or "?"
    elif isinstance(node, ast.Import):
        yield from (file_of(alias.name) or "?" for alias in node.names if alias.name.split(".")[0] == "adaptpo")


def file_of(dotted: str) -> str | None:
    path = "/".join(dotted.split(".")[1:])
    names = [path, f"{path}/__init__"] if path else ["__init__"]
    return next((name for name in names if name in modules()), None)


def room(module: str) -> str:
    return module.split("/")[0]


def room_imports() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for module in modules():
        found.setdefault(room(module), set()).update(room(other) for other in imports(module))
    return {name: others - {name} for name, others in found.items()}


def test_root_holds_six_files() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT_FILES


def test_every_import_is_found() -> None:
    assert not [module for module in modules() if "?" in imports(module)]
    assert sum(len(imports(module)) for module in modules()) > 500


def test_no_circle_between_files() -> None:
    refuse_circle({module: set(imports(module)) for module in modules()})


def test_no_circle_between_folders() -> None:
    refuse_circle(room_imports())


def refuse_circle(graph: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_circles_are_found() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"a imports b imports a|b imports a imports b"):
        refuse_circle({"a": {"b"}, "b": {"a"}})


def test_folders_import_what_the_table_allows() -> None:
    """The table says no more and no less than the code."""
    assert {name: others - BELOW for name, others in room_imports().items()} == MAY_IMPORT


@cache
def class_names() -> frozenset[str]:
    tables = (SELECTIONS, PAIRINGS, WEIGHTINGS, FILTERS, POLICY_TRAINERS)
    choices = frozenset(kind.__name__ for table in tables for kind in table.values())
    return choices | {kind.__name__ for kind in learners(Learner)}


def learners(kind: type[Learner]) -> Iterator[type[Learner]]:
    for derived in kind.__subclasses__():
        if derived.__module__.startswith("adaptpo."):
            yield derived
            yield from learners(derived)


@cache
def metric_prefixes() -> tuple[str, ...]:
    """Of the metrics that some learner of a named method logs: `meta/`, `temporal/` and so on."""
    names = {name for build in METHODS.values() for name in build().metrics()}
    return tuple({f"{name.split('/')[0]}/" for name in names} - {"weight/"})


def named_in(tree: ast.Module) -> set[str]:
    """Names of methods, choices, learners and their metrics in code; prose in docstrings and messages is free."""
    known, prefixes = class_names(), metric_prefixes()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute | ast.alias):
            name = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", "")
            found |= {name} & known
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & set(METHODS)
            found |= {node.value} if node.value.startswith(prefixes) else set()
    return found


def test_the_choices_alone_know_methods_and_learners() -> None:
    assert {"meta/", "temporal/", "kto/"} <= set(metric_prefixes())
    assert {"MetaLearner", "TemporalLearner", "SelectByLearner", "GRPO"} <= class_names()
    others = {f"{name}.py": tree for name, tree in modules().items() if not f"{name}.py".startswith(KNOWS_METHODS)}
    found = {name: names for name, tree in others.items() if (names := named_in(tree))}
    unexpected = {name: names - EXCEPTIONS.get(name, set()) for name, names in found.items()}
    assert {name: names for name, names in unexpected.items() if names} == {}
    assert EXCEPTIONS.keys() <= found.keys() | {"cli/demo.py"}
