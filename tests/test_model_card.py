"""The card of an aligned model: what it was trained on, and what was measured."""

from __future__ import annotations

from adaptpo.pipeline.model_card import data_sentence, held_out_table

PHASES = {
    "data": {"kept": 2900, "dropped": 100},
    "evaluate/initial": {"reward/mean": 0.5701, "length/mean": 20.04},
    "iterations/0/generate": {"responses": 800},
    "iterations/0/annotate": {"annotated": 796, "invalid": 4},
    "iterations/1/generate": {"responses": 700},
    "iterations/1/annotate": {"annotated": 700},
    "evaluate/iteration-1": {"reward/mean": 0.805, "win_rate": 0.889, "length/mean": 21.0},
}


def test_numbers_of_the_data() -> None:
    assert data_sentence(PHASES) == (
        "2,900 rows of the data were used and 100 left out. 1,500 responses were generated and 1,496 of them annotated."
    )
    assert "generated" not in data_sentence({"data": PHASES["data"]})


def test_table_of_held_out_prompts() -> None:
    assert held_out_table(PHASES).strip().splitlines() == [
        "| held-out prompts | reward | win rate | tokens |",
        "|---|---|---|---|",
        "| initial | 0.570 |  | 20.0 |",
        "| iteration-1 | 0.805 | 88.9% | 21.0 |",
    ]
    assert held_out_table({"data": {}}) == ""
