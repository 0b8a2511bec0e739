"""Makes the tests' process quick, and prints what tests show."""

from __future__ import annotations

import pytest

from adaptpo.report.figures import RenderedFigure
from tests import quick


def pytest_collection_finish(session: pytest.Session) -> None:
    quick.wait_for_no_disk()
    quick.leave_out_of_collections()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """The first run of a process imports much that stays."""
    quick.leave_out_of_collections()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have no pictures, which take seconds; they have the titles and captions of those they would have."""
    monkeypatch.setattr("adaptpo.report.page.render", lambda spec, _: RenderedFigure(spec.title, spec.caption, "", ""))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints what tests show: their property `show`, which also comes from other processes."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            if name == "show":
                terminalreporter.write_line(value)
