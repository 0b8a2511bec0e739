"""Reads preference data: every row becomes an example or a `Dropped` with its reason.

`open_rows` opens a source (hub id, file, folder, `datasets` object), `iter_examples` turns its rows into preference
examples, and `read_examples` does both; `read_prompts` reads only prompts. With `fingerprint`, a resumed run detects
changed data.
"""

from adaptpo.data.examples import PromptExample, iter_examples, iter_prompts, read_examples, read_prompts, require_rows
from adaptpo.data.fingerprint import fingerprint
from adaptpo.data.pairs import TextFormat
from adaptpo.data.source import DataSource, Rows, open_rows
from adaptpo.types import Row

__all__ = [
    "DataSource",
    "PromptExample",
    "Row",
    "Rows",
    "TextFormat",
    "fingerprint",
    "iter_examples",
    "iter_prompts",
    "open_rows",
    "read_examples",
    "read_prompts",
    "require_rows",
]
