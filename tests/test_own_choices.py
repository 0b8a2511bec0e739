"""Choices that a recipe sets: by name, as a class of the user's own, and as a list of objectives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from adaptpo import AlignmentTrainer
from adaptpo.choices.described import Described, code_digests
from adaptpo.choices.objectives import DPO, SFT, BCOPair, WeightedSum
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectRandom
from adaptpo.choices.weighting import Focal, OnPolicy
from adaptpo.config.recipe import load_recipe
from adaptpo.errors import ConfigError, RunError
from adaptpo.methods.build import build_method
from tests.runs import SETTINGS, weights
from tests.tiny import preference_rows, save_policy, write_jsonl

MODULE = """
from dataclasses import dataclass

from adaptpo.choices.objectives import DPO
from adaptpo.choices.pairing import Offline
from adaptpo.choices.selection import SelectNone
from adaptpo.choices.weighting import Uniform, Weighting


@dataclass(frozen=True)
class Steep(DPO):
    steepness: float = 2.0

    def loss(self, logps):
        return self.steepness * super().loss(logps)


class Halved(Weighting):
    def __init__(self, share: float = 0.5) -> None:
        self.share = share

    def weights(self, batch):
        return self.share / batch.group_size


@dataclass(frozen=True)
class Everyone(SelectNone):
    pass


@dataclass(frozen=True)
class AsGiven(Offline):
    pass


class Unfinished(Weighting):
    pass


class Needy(Weighting):
    def __init__(self, needed: int) -> None:
        raise ValueError("never enough")

    def weights(self, batch):
        return batch.margin


number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_choices", raising=False)
    path = tmp_path / "own_choices.py"
    path.write_text(MODULE)
    yield path
    sys.modules.pop("own_choices", None)


def built(tmp_path: Path, method: Any, **keys: Any) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"model": "m", "data": "d", "output_dir": "o", "method": method, **keys}))
    return build_method(load_recipe(path))


def test_a_recipe_sets_each_choice_by_name(tmp_path: Path) -> None:
    method = built(tmp_path, {"name": "metaapo", "weighting": {"name": "focal", "gamma": 0.2}, "pairing": "offline"})
    assert (method.weighting, method.pairing, method.name) == (Focal(0.2), Offline(), "metaapo")
    assert built(tmp_path, {"name": "dpo", "weighting": "on_policy"}).weighting == OnPolicy()
    selection = {"name": "random", "share": 0.25}
    assert built(tmp_path, {"name": "online_dpo", "selection": selection}).selection == SelectRandom(0.25)


def test_a_recipe_names_classes_of_its_own_on_every_axis(module: Path, tmp_path: Path) -> None:
    method = built(
        tmp_path,
        {
            "name": "dpo",
            "selection": "python:own_choices:Everyone",
            "pairing": "python:own_choices:AsGiven",
            "objective": {"name": "python:own_choices:Steep", "beta": 0.2, "steepness": 3.0},
            "weighting": {"name": "python:own_choices:Halved", "share": 0.25},
        },
    )
    assert [type(getattr(method, axis)).__name__ for axis in ("selection", "pairing")] == ["Everyone", "AsGiven"]
    assert (method.objective.beta, method.objective.steepness, method.weighting.share) == (0.2, 3.0, 0.25)
    assert method.choices()["weighting"] == "Halved(share=0.25)"
    assert set(method.code()) == {f"own_choices.{name}" for name in ("Steep", "Halved", "Everyone", "AsGiven")}
    assert list(method.opening()["code"]) == ["own_choices.Steep"]


def test_settings_of_an_own_objective_may_stand_beside_it(module: Path, tmp_path: Path) -> None:
    method = built(tmp_path, {"name": "dpo", "objective": "python:own_choices:Steep", "steepness": 5.0})
    assert method.objective.steepness == 5.0


def test_a_list_is_a_weighted_sum(tmp_path: Path) -> None:
    entry = [{"name": "dpo", "weight": 0.8, "beta": 0.2}, {"name": "bco_pair", "weight": 1}, "sft"]
    expected = WeightedSum((DPO(0.2), BCOPair(), SFT()), (0.8, 1.0, 1.0))
    assert built(tmp_path, {"name": "metaapo", "objective": entry}).objective == expected


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"weighting": "python:own_choices"}, "method.weighting 'python:own_choices' must have the form"),
        ({"weighting": "python:no_such:X"}, "method.weighting 'python:no_such:X': cannot import 'no_such'"),
        ({"weighting": "python:own_choices:Halv"}, "module 'own_choices' has no 'Halv'"),
        (
            {"weighting": "python:own_choices:number"},
            "must be a class derived from adaptpo.choices.weighting.Weighting",
        ),
        ({"weighting": "python:own_choices:Steep"}, "must be a class derived from adaptpo.choices.weighting.Weighting"),
        (
            {"weighting": {"name": "python:own_choices:Halved", "shar": 1}},
            "method.weighting.shar': did you mean 'share'",
        ),
        (
            {"weighting": {"name": "python:own_choices:Halved", "share": "x"}},
            "'method.weighting.share': Input should be",
        ),
        ({"weighting": "python:own_choices:Unfinished"}, "cannot be made of no arguments: .*abstract"),
        ({"weighting": {"name": "python:own_choices:Needy", "needed": 1}}, "never enough"),
        ({"weighting": "learned_blend"}, "a choice that holds a learner comes only with a method of its own"),
        ({"weighting": {"name": "learned_blend", "learner": "x"}}, "'method.weighting.learner'"),
        ({"weighting": "focl"}, "unknown weighting 'focl': did you mean 'focal'"),
        ({"selection": {"name": "random", "share": 2.0}}, "share"),
        ({"objective": []}, "0 objectives"),
        ({"objective": [{"name": "dpo", "weight": "much"}]}, "the weight 'much' of an objective is not a number"),
        ({"objective": ["dpo", "sff"]}, "unknown objective 'sff': did you mean 'sft'"),
    ],
)
def test_wrong_choices_are_refused(method: dict[str, Any], message: str, module: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        built(tmp_path, {"name": "dpo"} | method)


def run(module: Path, tmp_path: Path, policy: str, **weighting: Any) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", preference_rows(4))
    sys.modules.pop("own_choices", None)
    method = {"name": "dpo", "weighting": {"name": "python:own_choices:Halved", **weighting}}
    recipe = SETTINGS | {"model": policy, "data": "rows.jsonl", "output_dir": str(tmp_path / "run"), "method": method}
    recipe |= {"num_iterations": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Path(AlignmentTrainer.from_recipe(load_recipe(tmp_path / "recipe.yaml")).train())


def test_a_run_with_an_own_choice_resumes_until_its_settings_or_its_code_change(module: Path, tmp_path: Path) -> None:
    policy = save_policy(tmp_path / "policy")
    first = weights(run(module, tmp_path, policy, share=0.25))
    assert torch.equal(
        *(next(iter(found.values())) for found in (first, weights(run(module, tmp_path, policy, share=0.25))))
    )
    with pytest.raises(RunError, match=r"method.choices.weighting"):
        run(module, tmp_path, policy, share=0.5)
    module.write_text(MODULE.replace("self.share / batch", "2 * self.share / batch"))
    with pytest.raises(RunError, match=r"method.code.own_choices.Halved"):
        run(module, tmp_path, policy, share=0.25)


def test_settings_are_shown_without_addresses() -> None:
    class Mine(Described):
        def __init__(self) -> None:
            self.part, self.size = OnPolicy(), 3

    assert repr(Mine()) == f"{Mine.__qualname__}(part=OnPolicy(), size=3)"
    assert code_digests(OnPolicy()) == {}
