"""The one loader of YAML: what is ambiguous, endless or no text is an error that names its line."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import MappingNode, Node, ScalarNode

LONGEST = 2**19
"""Characters of a document."""
DEEPEST = 32
"""Lists and mappings within one another."""
MOST_VALUES = 100_000
"""Values of a document with its aliases written out."""
INTEGER, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
OTHER_IN_1_2 = re.compile(r"[-+]?0[0-9b].*|.*[:_].*")
BOOLEAN, AMBIGUOUS = "tag:yaml.org,2002:bool", ("yes", "no", "on", "off")
UNREADABLE = (ValueError, OverflowError, AttributeError, KeyError, IndexError, TypeError)
"""What PyYAML's constructors raise for `2024-02-30`, `!!bool x` or an integer of thousands of digits."""


class StrictLoader(yaml.SafeLoader):
    """YAML without Python objects, duplicate keys, aliases of what contains them, and halves of surrogate pairs.

    Reads 1e-6 as a number, as in YAML 1.2; in YAML 1.1, which PyYAML follows, it is a string. Refuses what 1.1 reads as
    booleans, yes, no, on and off, among them Norway's code, and as other numbers, such as 010 (8) and 12:30 (750).
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.open_anchors: list[str | None] = []

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event: Any = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent) and event.anchor in self.open_anchors:
            raise ConstructorError(None, None, f"the alias *{event.anchor} contains itself", mark)
        if len(self.open_anchors) >= DEEPEST:
            raise ConstructorError(None, None, f"more than {DEEPEST} lists within one another", mark)
        self.open_anchors.append(None if isinstance(event, yaml.AliasEvent) else event.anchor)
        try:
            return super().compose_node(parent, index)
        finally:
            self.open_anchors.pop()

    def construct_document(self, node: Node) -> Any:
        if written_out(node, {}) > MOST_VALUES:
            problem = f"its aliases stand for more than {MOST_VALUES} values"
            raise ConstructorError(None, None, problem, node.start_mark)
        return super().construct_document(node)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if isinstance(node, ScalarNode) and node.tag == BOOLEAN and node.value.lower() in AMBIGUOUS:
            problem = (
                f"'{node.value}' is a boolean in YAML 1.1 and text in 1.2; write true or false, or put it in quotes"
            )
            raise ConstructorError(None, None, problem, node.start_mark)
        if isinstance(node, ScalarNode) and node.tag in (INTEGER, FLOAT) and OTHER_IN_1_2.fullmatch(node.value):
            problem = (
                f"'{node.value}' is another number in YAML 1.1 than in 1.2; write plain digits, or put it in quotes"
            )
            raise ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except UNREADABLE as error:
            shown = str(node.value)[:40] if isinstance(node, ScalarNode) else "this"
            problem = f"{shown!r} is no {node.tag.rpartition(':')[2]}; in quotes it is text"
            raise ConstructorError(None, None, problem, node.start_mark) from error

    def construct_scalar(self, node: ScalarNode | MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and not is_unicode(value):
            raise ConstructorError(None, None, "half of a surrogate pair is no text", node.start_mark)
        return value

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, MappingNode):
            refuse_duplicates(node)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The value of one document. Raises `yaml.YAMLError`, with the line, for anything that is not exactly one."""
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"it has {len(text)} characters; the maximum is {LONGEST}")
    return yaml.load(text, StrictLoader)


def is_unicode(text: str) -> bool:
    """Whether the text has a form in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_duplicates(node: MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, key.value) if isinstance(key, ScalarNode) else id(key)
        if name in seen:
            raise ConstructorError(None, None, f"the key '{key.value}' occurs twice", key.start_mark)
        seen.add(name)


def written_out(node: Node, known: dict[int, int]) -> int:
    """The number of values of a node, with those that aliases repeat."""
    if id(node) not in known:
        children = [] if isinstance(node, ScalarNode) else node.value
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(written_out(part, known) for part in flat)
    return known[id(node)]
