"""Recognizes keys, by the name under which a value is given and by the form of the value, and keeps them off disk.

Three places use it: settings remember what they are given, whatever a run writes is masked, and so are messages.
Rows and responses are written too: they lose keys, but no ordinary words.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

MASK = "(secret)"
SHORTEST = 8
"""Shorter values are masked only where they were given: in other texts, they would match ordinary words."""

SECRET_WORDS = {"token", "secret", "password", "passwd", "passphrase", "apikey", "authorization", "credential"}
SECRET_WORDS |= {"credentials", "bearer", "key", "auth", "accesskey"}
TOKENS_OF_A_MODEL = {"pad", "eos", "bos", "unk", "mask", "sep", "cls", "image", "stop", "end", "start", "think"}
TOKENS_OF_A_MODEL |= {"special", "first", "last", "next", "new", "prompt", "decoder", "forced", "suppress"}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

FORMS = re.compile(
    r"""\b(?:hf_[A-Za-z0-9]{16,}|api_org_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{8,}|[rsp]k_(?:live|test)_[A-Za-z0-9]{8,}"""
    r"""|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{20,}"""
    r"""|xox[abeoprs]-[\w-]{8,}|gsk_[A-Za-z0-9]{16,}|nvapi-[\w-]{16,}|pypi-[\w-]{16,}"""
    r"""|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)|(?<=Bearer )[\w.~+/-]{8,}"""
)
IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
ASSIGNED = re.compile(
    r"""(?P<name>(?<![\w-])(?:--?)?[\w-]*(?:token|secret|password|passwd|passphrase|key|authorization|credentials?|auth))"""
    r"""(?P<between>["']?(?:\s*[=:]\s*|\s+)["']?(?:(?:Bearer|Basic)\s+)?)(?P<value>[^\s"',;&}\])]+)""",
    re.IGNORECASE,
)
ORDINARY = {"key", "token", "secret", "auth", "credential", "credentials"}
"""Names that stand before ordinary words too, as in "key=value"."""
RANDOM_VALUE = re.compile(r"(?=.*\d)(?=.*[A-Za-z])\S{12,}")
SPACED = re.compile(r"\s+[\"']?\Z")
IN_QUERY = re.compile(r"(?P<name>(?<=[?&])[^=&\s#]+)=(?P<value>[^&\s#]+)")
SIGNED_QUERY = {"sig", "signature", "code"}
RANDOM = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*[a-z])(?=[A-Za-z0-9]*[A-Z])(?=[A-Za-z0-9]*\d)[A-Za-z0-9]{24,}")

ORDINARY_VALUE = re.compile(r"(?=.{,14}\Z)(?:[A-Za-z]?[a-z]+(?:[-_ ][a-z]+)?|[A-Z]+)")
"""One short word or two, such as the password "postgres": rows and responses hold it too, and must stay as they are."""

known: set[str] = set()
"""What this process was given as a key, and masks wherever it would write it."""


class Secret(str):
    """A text that libraries can use and that no pickle holds: `training_args.bin` gets what `shown` says instead."""

    shown: str | None

    def __new__(cls, value: str, shown: str | None = None) -> Secret:
        found = super().__new__(cls, value)
        found.shown = shown
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return (unpickled, (self.shown,))

    def __deepcopy__(self, _: Any) -> Secret:
        return self

    def __copy__(self) -> Secret:
        return self


def unpickled(shown: str | None) -> str | None:
    return shown


def is_secret_name(name: str) -> bool:
    """Whether what is given under this name is a key: `hub_token`, `x-api-key`, `--api-key`, `HF_TOKEN`.

    >>> [is_secret_name(name) for name in ("hub_token", "apiKey", "eos_token", "max_tokens", "api_key_env")]
    [True, True, False, False, False]
    """
    words = [word.lower() for word in WORD.findall(name)]
    if not words or words[-1] not in SECRET_WORDS:
        return False
    return not (words[-1] == "token" and len(words) > 1 and words[-2] in TOKENS_OF_A_MODEL)


def has_form_of_key(text: str) -> bool:
    return FORMS.search(text) is not None


def remember(value: str) -> None:
    """Masks this value from now on."""
    if len(value) >= SHORTEST:
        known.add(str(value))


@cache
def of_environment() -> frozenset[str]:
    """The keys in this process's environment when it first writes."""
    return frozenset(value for name, value in os.environ.items() if is_secret_name(name) and len(value) >= SHORTEST)


def without_known(text: str) -> str:
    """The text without the keys that this process was given, or has in its environment.

    A key that is an ordinary word stays: the text may be data, and the word no key there.
    """
    return _without(text, {value for value in known | of_environment() if not ORDINARY_VALUE.fullmatch(value)})


def _without(text: str, values: Collection[str]) -> str:
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def masked_text(text: str) -> str:
    """A setting or a message without known keys, what looks like one, and what stands behind the name of one.

    >>> masked_text("vllm serve m --api-key abc --max-tokens 5 # sk-0123456789")
    'vllm serve m --api-key (secret) --max-tokens 5 # (secret)'
    """
    text = IN_ADDRESS.sub(MASK, FORMS.sub(MASK, _without(text, known | of_environment())))
    return ASSIGNED.sub(_masked_assignment, IN_QUERY.sub(_masked_query, text))


def _masked_query(found: re.Match[str]) -> str:
    return f"{found['name']}={MASK}" if _is_query_secret(found["name"]) else found[0]


def _is_query_secret(name: str) -> bool:
    return is_secret_name(name) or name.lower() in SIGNED_QUERY


def _masked_assignment(found: re.Match[str]) -> str:
    name, between = found["name"], found["between"]
    # In prose, a word such as "key" is followed by another word; only an option's value stands behind a mere space.
    in_prose = not name.startswith("-") and SPACED.match(between)
    may_be_word = name.lower() in ORDINARY and not RANDOM_VALUE.match(found["value"])
    return found[0] if not is_secret_name(name) or in_prose or may_be_word else f"{name}{between}{MASK}"


def holds_key(address: str) -> bool:
    """Whether an address holds a key: before its host, in its query, or in its path."""
    query = any(_is_query_secret(found["name"]) for found in IN_QUERY.finditer(address))
    path = address.partition("?")[0]
    named = re.search(r"/(?:token|key|secret|apikey|api[-_]key)s?/[^/]", path, re.IGNORECASE)
    return bool(query or named or IN_ADDRESS.search(address) or has_form_of_key(address) or RANDOM.search(path))


def masked(value: Any, name: str = "") -> Any:
    """The value without keys, at any depth: the form in which settings are written and shown."""
    if isinstance(value, Mapping):
        return {key: masked(part, str(key)) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [masked(part, name) for part in value]
    if not isinstance(value, str):
        return value
    return MASK if value and is_secret_name(name) else str(masked_text(value))


def guarded(value: Any, name: str = "") -> Any:
    """The value with each text that is or holds a key as a `Secret`, whose whole is remembered."""
    if isinstance(value, dict):
        return {key: guarded(part, str(key)) for key, part in value.items()}
    if isinstance(value, list):
        return [guarded(part, name) for part in value]
    if not isinstance(value, str) or not value:
        return value
    if is_secret_name(name):
        remember(value)
        return Secret(value)
    shown = masked_text(value)
    return value if shown == value else Secret(value, shown)


def remember_given(text: str) -> None:
    """Remembers the keys in a command or in its options."""
    for found in [*ASSIGNED.finditer(text), *FORMS.finditer(text)]:
        groups = found.groupdict()
        if not groups:
            remember(found[0])
        elif _masked_assignment(found) != found[0]:
            remember(groups["value"])


def shown(value: Any, name: str = "") -> str:
    """A value in a message: without keys, and not too long."""
    text = repr(masked(value, name) if isinstance(value, str | Mapping | list | tuple) else value)
    return text if len(text) <= 200 else f"{text[:200]}..."
