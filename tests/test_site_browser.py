"""The documentation site and the reports in a real browser: no console error, no request to another address."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adaptpo.report import write_comparison, write_report
from tests.browser import Watched, browser, needs_chromium, sync_api
from tests.test_report import write_run
from tests.test_site import site

__all__ = ["browser", "site"]
pytestmark = [pytest.mark.engines, needs_chromium]
PAGES = ["index", "start", "concepts/metaapo", "reference/keys", "results"]
WINDOWS = {"wide": (1440, 900), "narrow": (390, 844)}
SCREENSHOTS = os.environ.get("ADAPTPO_SCREENSHOTS")
"""A folder to look at what the tests see."""


def only_files(requests: list[str]) -> bool:
    return all(url.startswith(("file:", "data:", "blob:")) for url in requests)


def overflow(page: sync_api.Page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def keep(page: sync_api.Page, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=Path(SCREENSHOTS) / f"{name.replace('/', '-')}.png")


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_pages_of_the_site(browser: sync_api.Browser, served: str, window: str, scheme: str) -> None:
    width, height = WINDOWS[window]
    seen = Watched(browser, viewport={"width": width, "height": height}, color_scheme=scheme)
    for name in PAGES:
        seen.page.goto(f"{served}/{name}.html")
        sync_api.expect(seen.page.locator("h1")).to_be_visible()
        assert overflow(seen.page) <= 0, name
        keep(seen.page, f"{name}-{window}-{scheme}")
    assert seen.errors == [] and all(url.startswith((served, "blob:", "data:")) for url in seen.requests)
    dark = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, dark.removeprefix("rgb(").rstrip(")").split(",")[:3])) < 100) == (scheme == "dark")
    seen.page.context.close()


def test_search_finds(browser: sync_api.Browser, served: str) -> None:
    seen = Watched(browser)
    seen.page.goto(f"{served}/index.html")
    seen.page.get_by_label("Search", exact=True).first.click()
    seen.page.keyboard.type("keep_unselected")
    sync_api.expect(seen.page.locator(".md-search-result__item").first).to_be_visible(timeout=20_000)
    assert seen.errors == [] and all(url.startswith((served, "blob:", "data:")) for url in seen.requests)
    seen.page.context.close()


def test_open_report_follows_its_run(browser: sync_api.Browser, tmp_path: Path) -> None:
    """The page loads itself again: what was written since is there without a reload by hand."""
    run = write_run(tmp_path / "run")
    run.state["final"]["done"] = False
    run.save()
    page = write_report(run.root, refresh=1)
    seen = Watched(browser)
    seen.page.goto(page.as_uri())
    sync_api.expect(seen.page.locator(".status")).to_contain_text("unfinished")
    keep(seen.page, "report")
    run.finish("final", 2.2)
    write_report(run.root)
    sync_api.expect(seen.page.locator(".status")).to_have_text("finished", timeout=20_000)
    assert seen.errors == [] and only_files(seen.requests)
    loads = len(seen.requests)
    time.sleep(2.5)
    assert len(seen.requests) == loads  # A finished page stays.
    seen.page.context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_comparison_fits(browser: sync_api.Browser, tmp_path: Path, width: int) -> None:
    runs = [write_run(tmp_path / name, name).root for name in ("metaapo", "dpo")]
    seen = Watched(browser, viewport={"width": width, "height": 900})
    seen.page.goto(write_comparison(runs, tmp_path / "both").as_uri())
    assert seen.page.locator("figure").count() >= 4 and overflow(seen.page) <= 0
    keep(seen.page, f"comparison-{width}")
    assert seen.errors == [] and only_files(seen.requests)
    seen.page.context.close()
