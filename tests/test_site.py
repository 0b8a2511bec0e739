"""The documentation site: builds strictly, asks nothing of other addresses, and names everything public."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import adaptpo
from adaptpo.methods import METHODS
from tests.test_architecture import MAY_IMPORT

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    plain = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    built = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr
    return folder


class Loaded(HTMLParser):
    """What a page makes the browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("img", "script", "iframe", "source"):
            self.addresses += [given.get("src") or ""]
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses += [given.get("href") or ""]


def test_no_page_loads_from_another_address(site: Path) -> None:
    for page in site.rglob("*.html"):
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert not [address for address in loaded.addresses if re.match(r"(https?:)?//", address)], page


def test_generated_pages_name_everything(site: Path) -> None:
    keys = (site / "reference/keys.html").read_text("utf-8")
    methods = (site / "reference/methods.html").read_text("utf-8")
    for field in adaptpo.AlignmentConfig.model_fields:
        assert f"<code>{field}</code>" in keys
    for name in METHODS:
        assert f'id="{name}"' in methods
    assert "adaptpo train" in (site / "reference/commands.html").read_text("utf-8")


def test_equations_are_mathml_and_search_has_an_index(site: Path) -> None:
    page = (site / "concepts/metaapo.html").read_text("utf-8")
    assert "<math" in page and "$" not in re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert "volatility" in (site / "search/search_index.json").read_text("utf-8")


def test_drawing_is_of_the_imports() -> None:
    sys.path.insert(0, str(ROOT / "docs" / "hooks"))
    try:
        import floor_plan
    finally:
        sys.path.pop(0)
    folders = {name for name in MAY_IMPORT if not name.startswith("__")} - {"types", "errors", "seeds"}
    assert set(floor_plan.HOLDS) == folders, "docs/hooks/floor_plan.py says what each folder holds"
    assert floor_plan.DRAWING.read_text("utf-8") == floor_plan.drawing(MAY_IMPORT), "python docs/hooks/floor_plan.py"


@pytest.mark.parametrize("name", [name for name in adaptpo.__all__ if not name.startswith("__")])
def test_public_names_have_docstrings(name: str) -> None:
    public = getattr(adaptpo, name)
    assert inspect.getdoc(public)
    members = inspect.getmembers(public, inspect.isfunction) if inspect.isclass(public) else []
    own = [member for key, member in members if not key.startswith("_") and member.__module__.startswith("adaptpo")]
    assert [member.__qualname__ for member in own if not inspect.getdoc(member)] == []
