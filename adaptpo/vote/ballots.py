"""The file `votes.sqlite`: what is asked, who votes, and every vote as an event that is never changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adaptpo.errors import RunError
from adaptpo.run.database import Database
from adaptpo.vote.questions import Plan, Question, in_order, left_is_a, questions_for, read_key

UNDO = "undo"
CHOICES = ("left", "right", "tie", "bad", "skip", UNDO)
FILE = "votes.sqlite"
COMPARED = ("runs", "prompts", "seed", "overlap")
"""Settings that make a vote this vote."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS questions (
    number INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS voters (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, joined TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    voter TEXT NOT NULL, turn INTEGER NOT NULL, choice TEXT NOT NULL, prompt TEXT NOT NULL, left_side TEXT NOT NULL,
    seconds REAL, time TEXT NOT NULL, PRIMARY KEY (voter, turn)
);
"""


@dataclass(frozen=True)
class Event:
    """One press of a key: a choice about a prompt, or the undoing of the last one that stands.

    `turn` counts the voter's events from 0. `left_side` is the run, A or B, whose response stood on the left. `seconds`
    is how long the question was in view, None where the browser did not say.
    """

    voter: str
    turn: int
    choice: str
    prompt: str
    left_side: str
    seconds: float | None
    time: str


@dataclass(frozen=True)
class Place:
    """Where a voter is. `question` is None when all are answered."""

    turn: int
    done: int
    total: int
    question: Question | None
    a_on_left: bool


class Ballots:
    """The votes between two runs, in one folder; several servers may write to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.database = Database(self.path, SCHEMA)
        self.settings = self._read_settings()

    @classmethod
    def existing(cls, folder: Path, names: Sequence[str]) -> Ballots:
        """Raises RunError when the folder holds no vote between the runs of these names."""
        if not (folder / FILE).exists():
            raise RunError(f"{folder} holds no votes; collect some with `adaptpo vote`, or name their folder by --out")
        found = cls(folder)
        found._refuse_other({"runs": list(names)})
        return found

    def begin(self, settings: dict[str, Any], questions: Sequence[Question]) -> None:
        """Keep what is asked, once. `settings` holds those of `COMPARED`, and notes for the results.

        Raises RunError if something else is asked here already.
        """
        if not self.settings:
            self._keep_first(settings, questions)
        self._refuse_other(settings)
        if questions != self.questions():
            raise RunError(
                f"{self.path} holds votes on other responses of the same runs, which have changed since; "
                "choose another --out"
            )

    def _keep_first(self, settings: dict[str, Any], questions: Sequence[Question]) -> None:
        rows = [(number, question.key, question.a, question.b) for number, question in enumerate(questions)]
        keep = "INSERT INTO settings VALUES (?, ?) ON CONFLICT DO NOTHING"
        with self.database.transaction() as connection:
            (first, value), *others = [(name, json.dumps(value)) for name, value in settings.items()]
            # Of two servers that start at once, the one whose first setting is kept keeps all the rest.
            if connection.execute(keep, (first, value)).rowcount:
                connection.executemany(keep, others)
                connection.executemany("INSERT INTO questions VALUES (?, ?, ?, ?)", rows)
        self.settings = self._read_settings()

    def _read_settings(self) -> dict[str, Any]:
        return {row["name"]: json.loads(row["value"]) for row in self.database.rows("SELECT * FROM settings")}

    def _refuse_other(self, settings: dict[str, Any]) -> None:
        differing = [name for name in COMPARED if name in settings and self.settings.get(name) != settings[name]]
        if differing:
            lines = [f"  {name}: {self.settings.get(name)} there, {settings[name]} now" for name in differing]
            raise RunError(
                "\n".join([f"{self.path} holds another vote:", *lines])
                + "\nName the same runs in the same order with the same settings, or choose another --out."
            )

    def keep(self, name: str, value: str) -> str:
        """The setting of this name, which is `value` unless there was one before."""
        self.database.write("INSERT INTO settings VALUES (?, ?) ON CONFLICT DO NOTHING", name, json.dumps(value))
        kept = self.database.rows("SELECT value FROM settings WHERE name = ?", name)[0]["value"]
        return str(json.loads(kept))

    @property
    def plan(self) -> Plan:
        return Plan(**{name: self.settings[name] for name in asdict(Plan())})

    def questions(self) -> list[Question]:
        rows = self.database.rows("SELECT prompt, a, b FROM questions ORDER BY number")
        return [Question(read_key(row["prompt"]), row["a"], row["b"]) for row in rows]

    def events(self, voter: str | None = None) -> list[Event]:
        where, values = ("", ()) if voter is None else ("WHERE voter = ?", (voter,))
        return [Event(**row) for row in self.database.rows(f"SELECT * FROM events {where} ORDER BY rowid", *values)]

    def voter_number(self, voter: str) -> int:
        """The voter's number from 0 on, in the order in which they came; a new voter gets the next one."""
        find = "SELECT number FROM voters WHERE name = ?"
        if not self.database.rows(find, voter):
            add = "INSERT INTO voters SELECT COUNT(*), ?, ? FROM voters WHERE true ON CONFLICT (name) DO NOTHING"
            self.database.write(add, voter, now())
        return int(self.database.rows(find, voter)[0]["number"])

    def questions_of(self, voter: str, questions: Sequence[Question]) -> list[Question]:
        """The voter's questions in the order in which they are asked."""
        numbers = questions_for(self.voter_number(voter), len(questions), self.plan)
        return in_order([questions[number] for number in numbers], voter, self.plan.seed)

    def place(self, voter: str, questions: Sequence[Question]) -> Place:
        own, events = self.questions_of(voter, questions), self.events(voter)
        done = len(standing(events))
        question = own[done] if done < len(own) else None
        a_on_left = question is not None and left_is_a(own, voter, self.plan.seed)[question.key]
        return Place(len(events), done, len(own), question, a_on_left)

    def record(self, voter: str, turn: int, choice: str, seconds: float | None, questions: Sequence[Question]) -> bool:
        """Keep a choice; returns whether it is the choice of this turn. It is not if another was made before (in a
        second window), or if there is nothing to choose or to undo. The same request twice is one choice."""
        place, events = self.place(voter, questions), self.events(voter)
        if turn == place.turn and (subject := subject_of(choice, place, standing(events))):
            # The primary key decides between two requests of the same turn, in whichever processes they arrive.
            statement = "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
            self.database.write(statement, voter, turn, choice, *subject, seconds, now())
        return [event.choice for event in self.events(voter) if event.turn == turn] == [choice]

    def close(self) -> None:
        self.database.close()


def subject_of(choice: str, place: Place, kept: Sequence[Event]) -> tuple[str, str] | None:
    """The prompt that a choice is about, and the run on its left; None where there is nothing to choose or to undo."""
    if choice == UNDO:
        return (kept[-1].prompt, kept[-1].left_side) if kept else None
    return (place.question.key, "A" if place.a_on_left else "B") if place.question else None


def standing(events: Sequence[Event]) -> list[Event]:
    """One voter's choices that were not undone, in order."""
    kept: list[Event] = []
    for event in events:
        if event.choice == UNDO:
            kept.pop()
        else:
            kept.append(event)
    return kept


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
