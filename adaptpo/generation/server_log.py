"""Why a generation server ended, as far as its output says."""

from __future__ import annotations

import re
from pathlib import Path

SHOWN, BEFORE = 1500, 4
"""Maximum number of characters shown, and of lines shown before the line with the error."""
STARTED = "$ "
"""What begins the line with the command of each start."""
MARKS = r"(?:\([^)]*\) )?(?:(?:ERROR|CRITICAL|FATAL)\b[^\]]*\] ?)?"
"""What servers put before each line of a traceback: vLLM its process, level, time and file."""
RAISED = re.compile(rf"^{MARKS}(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt)\b(?:: |$)")
"""The last line of a traceback."""
COMPLAINT = re.compile(r"\b(?:error|fatal|critical|illegal instruction|killed|segmentation fault)\b", re.IGNORECASE)


def cause(log: Path) -> str:
    """Shows the first exception since the last start, else the first line that tells of an error, else the log's end.

    A server that fails prints its shutdown, and the failures of other processes, after the reason.
    """
    text = log.read_text(encoding="utf-8", errors="replace")
    _, *lines = text[text.rfind(f"\n{STARTED}") + 1 :].strip().split("\n")
    found = first_match(lines, RAISED)
    found = first_match(lines, COMPLAINT) if found is None else found
    if found is None:
        return f"the end of {log}:\n" + "\n".join(lines)[-SHOWN:]
    return f"the first error in {log}:\n" + "\n".join(lines[max(0, found - BEFORE) :])[:SHOWN]


def first_match(lines: list[str], pattern: re.Pattern[str]) -> int | None:
    return next((number for number, line in enumerate(lines) if pattern.search(line)), None)
