"""Data sets of the hub: downloaded, or streamed where they are large, by the real client against a local stub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adaptpo.data import open_rows, source
from adaptpo.data.mixture import Mixture
from adaptpo.errors import DataError
from adaptpo.pipeline.data_inputs import DataInputs
from tests.hub_data import DataHub, serving_data

ROWS = [{"prompt": "say ", "chosen": f"tea {number}", "rejected": "ice", "good": number % 2} for number in range(20)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
NAME = "org/tea"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[DataHub]:
    with serving_data(DataHub(NAME, {"README.md": b"# Tea\n", "data/train.jsonl": LINES}), tmp_path) as hub:
        yield hub


def test_small_data_sets_are_downloaded_and_large_ones_streamed(hub: DataHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (list(open_rows(NAME)), open_rows(NAME).is_streamed) == (ROWS, False)
    asked = [asked for path, asked in hub.read if path.startswith("data/")]
    assert asked == [None]  # Once, and whole.
    monkeypatch.setattr(source, "STREAMED_FROM", len(LINES) - 1)
    streamed = open_rows(NAME)
    assert (list(streamed), list(streamed), streamed.is_streamed) == (ROWS, ROWS, True)
    assert open_rows(NAME, streaming=False).size == 20
    monkeypatch.setattr(source, "STREAMED_FROM", len(LINES))
    assert not open_rows(NAME).is_streamed


def test_the_size_that_the_hub_tells_counts(hub: DataHub) -> None:
    hub.files["README.md"] = b"---\ndataset_info:\n  download_size: 99999999999\n---\n"
    assert open_rows(NAME).is_streamed


def test_no_row_is_read_after_the_last_that_is_taken(hub: DataHub) -> None:
    given = {"path": NAME, "streaming": True, "max_rows": 3, "filter": {"good": 1}}
    (sample,) = DataInputs.of([given]).mixture().samples(seed=0)  # type: ignore[union-attr]
    assert [number for number, _ in sample.numbered()] == [1, 3, 5]
    several = DataInputs.of({"a": given, "b": [*ROWS]})
    assert [(s.total, s.matching, s.taken) for s in several.mixture().samples(0)] == [(6, 3, 3), (20, 20, 20)]  # type: ignore[union-attr]


def test_slices_of_a_stream_are_refused_with_the_remedy(hub: DataHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(open_rows(NAME, "train[:3]"))) == 3
    with pytest.raises(DataError, match="A streamed data set has no slices: set split: train and max_rows"):
        open_rows(NAME, "train[:3]", streaming=True)
    monkeypatch.setattr(source, "STREAMED_FROM", 1)
    assert len(list(open_rows(NAME, "train[:3]"))) == 3  # Not by itself.


def mixture(**given: Any) -> Mixture:
    return DataInputs.of([{"path": NAME, "streaming": True, **given}]).mixture()  # type: ignore[union-attr]


def test_filters_of_a_stream_are_checked_as_others_are(hub: DataHub) -> None:
    with pytest.raises(DataError, match=r"reads the column 'goood', which no row has: did you mean 'good'"):
        mixture(filter={"goood": {"none_of": [1]}}).samples(seed=0)
    (sample,) = mixture(filter={"good": 7}).samples(seed=0)
    with pytest.raises(DataError, match="none of 20 rows passes the filter"):
        list(sample.numbered())


def test_a_stream_is_not_read_to_be_counted(hub: DataHub) -> None:
    (sample,) = mixture(max_rows=3).samples(seed=0)
    assert len(sample) == 3
    (whole,) = mixture().samples(seed=0)
    with pytest.raises(DataError, match="set max_rows"):
        len(whole)


def test_a_stream_has_the_rows_that_the_hub_tells(hub: DataHub) -> None:
    told = "---\ndataset_info:\n  splits:\n  - name: train\n    num_bytes: 9\n    num_examples: 20\n---\n"
    hub.files["README.md"] = told.encode()
    (known,) = mixture().samples(seed=0)
    assert len(known) == 20
