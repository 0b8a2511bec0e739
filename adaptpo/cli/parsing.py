"""What the parsers of all commands share."""

from __future__ import annotations

import argparse


def add_command(
    commands: argparse._SubParsersAction, name: str, summary: str, text: str, run: object
) -> argparse.ArgumentParser:
    """A command with its help text; `run` gets the parsed options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser(name, help=summary, description=text, formatter_class=formatter)
    parser.set_defaults(run_command=run)
    return parser
