"""The voting page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adaptpo.vote.ballots import Ballots, Event
from tests.browser import Watched, browser, needs_chromium, sync_api
from tests.votes import Server, voting, write_sides

__all__ = ["browser"]
pytestmark = [pytest.mark.engines, needs_chromium]
PROMPTS = 10
READ = 350
"""Milliseconds: longer than the page takes a second press for a mistake."""


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sides(tmp_path_factory.mktemp("sides"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The votes of the server that the tests share, each with a voter of its own."""
    return tmp_path_factory.mktemp("votes")


@pytest.fixture(scope="module")
def server(sides: list[Path], shared: Path) -> Iterator[Server]:
    with voting(sides, shared, "--prompts", str(PROMPTS)) as running:
        yield running


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The votes of a server of the test's own."""
    return tmp_path / "votes"


class Voter(Watched):
    """Somebody in front of a browser of their own."""

    def __init__(self, browser: sync_api.Browser, url: str, name: str, **settings: object) -> None:
        super().__init__(browser, **settings)
        self.name = name
        self.page.goto(url)
        self.page.get_by_label("Your name or initials").fill(name)
        self.page.get_by_role("button", name="Start").click()
        self.at(1)

    def at(self, number: int) -> None:
        """Wait until this question is shown, and read it."""
        sync_api.expect(self.page.locator("#count")).to_have_text(f"{number} of {PROMPTS}")
        self.page.wait_for_timeout(READ)

    def press(self, key: str, then: int) -> None:
        self.page.keyboard.press(key)
        self.at(then)

    def text(self) -> str:
        return self.page.locator("#question").inner_text()


@pytest.fixture
def ana(browser: sync_api.Browser, server: Server, request: pytest.FixtureRequest) -> Iterator[Voter]:
    voter = Voter(browser, server.url, request.node.name[:40])
    yield voter
    assert voter.errors == []
    assert all(url.startswith((server.url, "data:")) for url in voter.requests)
    voter.page.context.close()


def kept(out: Path, voter: str) -> list[Event]:
    ballots = Ballots(out)
    events = ballots.events(voter)
    ballots.close()
    return events


def choices(out: Path, voter: str) -> list[str]:
    return [event.choice for event in kept(out, voter)]


def test_every_key(ana: Voter, shared: Path) -> None:
    for number, key in enumerate(["ArrowLeft", "1", "ArrowRight", "2", "ArrowDown", "t", "b", "s"], start=2):
        ana.press(key, number)
    ana.press("u", 8)
    ana.press("T", 9)
    expected = ["left", "left", "right", "right", "tie", "tie", "bad", "skip", "undo", "tie"]
    assert choices(shared, ana.name) == expected
    assert all(event.seconds is not None and 0.3 <= event.seconds < 30 for event in kept(shared, ana.name))


def test_buttons(ana: Voter, shared: Path) -> None:
    for number, name in enumerate(["Answer 1", "Answer 2", "Tie", "Both bad", "Skip"], start=2):
        ana.page.get_by_role("button", name=name).click()
        ana.at(number)
    ana.page.get_by_role("button", name="Undo").click()
    ana.at(5)
    assert choices(shared, ana.name) == ["left", "right", "tie", "bad", "skip", "undo"]


def test_double_click_is_one_vote(ana: Voter, shared: Path) -> None:
    ana.page.get_by_role("button", name="Answer 1").dblclick()
    ana.at(2)
    ana.page.get_by_role("button", name="Answer 1").dblclick(delay=120)
    ana.at(3)
    ana.page.keyboard.press("1")
    ana.page.keyboard.press("1")
    ana.at(4)
    assert choices(shared, ana.name) == ["left"] * 3


def test_held_key_and_browser_shortcuts_are_no_votes(ana: Voter, shared: Path) -> None:
    ana.page.keyboard.down("t")
    ana.at(2)
    ana.page.keyboard.down("t")  # Again without a release: what a held key sends.
    ana.page.wait_for_timeout(READ)
    ana.page.keyboard.up("t")
    ana.page.keyboard.press("Alt+b")
    ana.page.wait_for_timeout(READ)
    assert choices(shared, ana.name) == ["tie"]


def test_reload_resumes(ana: Voter) -> None:
    ana.press("1", 2)
    ana.press("2", 3)
    before = ana.text()
    ana.page.reload()
    ana.at(3)
    assert ana.text() == before


def test_undo_brings_the_question_back(ana: Voter) -> None:
    assert ana.page.get_by_role("button", name="Undo").is_disabled()
    first = ana.text()
    ana.press("1", 2)
    ana.press("u", 1)
    assert ana.text() == first
    sync_api.expect(ana.page.locator("#status")).to_contain_text("Taken back")


def test_to_the_end_and_back(ana: Voter, shared: Path) -> None:
    for number in range(2, PROMPTS + 1):
        ana.press("1", number)
    ana.page.keyboard.press("t")
    sync_api.expect(ana.page.locator("#end")).to_be_visible()
    sync_api.expect(ana.page.locator("#count")).to_have_text(f"{PROMPTS} of {PROMPTS} done")
    assert ana.page.get_by_role("button", name="Tie").is_disabled()
    ana.page.wait_for_timeout(READ)
    ana.press("u", PROMPTS)
    assert len(choices(shared, ana.name)) == PROMPTS + 1


def test_scripts_and_markup_are_text(ana: Voter) -> None:
    seen = ""
    for number in range(2, PROMPTS + 1):
        seen += ana.text()
        ana.press("s", number)
    assert "<script>document.title = 'stolen'</script>" in seen and "<b>bold</b> {{ 7*7 }}" in seen
    assert ana.page.title() == "Which answer is better?"
    assert ana.page.locator("#question script, #question img, #question b").count() == 0


def test_blindness_and_hidden_names(ana: Voter, sides: list[Path]) -> None:
    seen = ""
    for number in range(2, PROMPTS + 1):
        seen += ana.page.content() + ana.page.url
        ana.press("t", number)
    assert "ChatGPT" not in seen and "OpenAI" not in seen and "name hidden" in seen
    assert not any(path.stem in seen for path in sides)


def test_dialogue(ana: Voter) -> None:
    for number in range(2, PROMPTS + 1):
        roles = ana.page.locator("#prompt .role").all_inner_texts()
        if roles:
            break
        ana.press("s", number)
    assert roles == ["system", "user", "assistant", "user"]


def test_two_voters_at_once(browser: sync_api.Browser, server: Server, ana: Voter, shared: Path) -> None:
    ben = Voter(browser, server.url, "Ben")
    ana.press("1", 2)
    ben.press("2", 2)
    ben.press("2", 3)
    ana.press("t", 3)
    assert choices(shared, ana.name) == ["left", "tie"] and choices(shared, "ben") == ["right", "right"]
    ben.page.context.close()


def test_same_voter_in_two_windows(browser: sync_api.Browser, server: Server, ana: Voter, shared: Path) -> None:
    """The second window votes on a question that is over: it does not count, and is said."""
    twin = Voter(browser, server.url, ana.name)
    ana.press("1", 2)
    twin.press("2", 2)
    sync_api.expect(twin.page.locator("#status")).to_contain_text("already answered")
    assert choices(shared, ana.name) == ["left"]
    twin.page.context.close()


def test_killed_server(browser: sync_api.Browser, sides: list[Path], out: Path) -> None:
    """kill -9, a vote meanwhile, a restart: the page goes on by itself, and every vote is there once."""
    options = ("--prompts", str(PROMPTS))
    with voting(sides, out, *options) as server:
        voter, port = Voter(browser, server.url, "ana"), server.port
        voter.press("1", 2)
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
        voter.page.keyboard.press("2")
        sync_api.expect(voter.page.locator("#status")).to_contain_text("does not answer")
        assert choices(out, "ana") == ["left"]
    with voting(sides, out, *options, "--port", str(port)):
        voter.at(3)
        voter.press("t", 4)
    assert choices(out, "ana") == ["left", "right", "tie"]
    voter.page.context.close()


def test_token_link(browser: sync_api.Browser, sides: list[Path], out: Path) -> None:
    with voting(sides, out, "--prompts", str(PROMPTS), "--host", "0.0.0.0") as server:
        query = server.url.split("?")[1]
        page = browser.new_context().new_page()
        assert page.goto(f"http://127.0.0.1:{server.port}/").status == 403
        voter = Voter(browser, f"http://127.0.0.1:{server.port}/?{query}", "ana")
        voter.press("1", 2)
        assert "token" not in voter.page.url
        voter.page.context.close()
    assert choices(out, "ana") == ["left"]


def test_results_after_the_vote(browser: sync_api.Browser, sides: list[Path], out: Path) -> None:
    """Somebody who always prefers run A, wherever it stands."""
    with voting(sides, out, "--prompts", str(PROMPTS)) as server:
        voter = Voter(browser, server.url, "ana")
        for number in range(2, PROMPTS + 1):
            left = voter.page.locator("#left").inner_text()
            voter.press("1" if left.startswith("zebra") else "2", number)
        voter.page.context.close()
    command = [sys.executable, "-m", "adaptpo", "vote", *map(str, sides), "--out", str(out), "--results", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert found["summary"]["votes"] == PROMPTS - 1 and found["summary"]["win"]["mean"] == 1


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out(browser: sync_api.Browser, server: Server, width: int, scheme: str) -> None:
    """Of the window, on a phone and on a desktop; the last line of the answers is not below the buttons."""
    voter = Voter(
        browser, server.url, f"{scheme} {width}", viewport={"width": width, "height": 740}, color_scheme=scheme
    )
    for number in range(2, PROMPTS):
        assert voter.page.evaluate("document.documentElement.scrollWidth") <= width
        voter.press("t", number)
    voter.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    bottom = voter.page.locator("#right").bounding_box()
    bar = voter.page.locator("footer").bounding_box()
    assert bottom["y"] + bottom["height"] <= bar["y"]
    voter.page.context.close()
