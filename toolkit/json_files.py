"""Reading JSON that nobody vouches for: bounded in size and depth, an object, without surprises in its values."""

from __future__ import annotations

import json
import math
from typing import Any

from adedge.errors import AdedgeError
from adedge.limits import JSON_BYTES, JSON_DEPTH, check

_LONGEST_INTEGER = 20  # characters: those of 64 bits


def parse_json(
    data: bytes, what: str, error: type[AdedgeError], remedy: str = "restore it from a copy"
) -> dict[str, Any]:
    """The object in the bytes of a JSON file; ``what`` names the file at the start of a message, ``remedy`` ends it.

    Raises ``error`` if the file is larger or nested deeper than `adedge.limits` allow, is not JSON in UTF-8 or not an
    object, repeats a key, or contains NaN, infinity, an integer of more than 20 digits, control characters in a key, or
    half of a surrogate pair.

    >>> parse_json(b'{"batch": [1, 4, 8]}', "engine.json", AdedgeError)
    {'batch': [1, 4, 8]}
    """
    check(JSON_BYTES, len(data), what, error)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
        if not isinstance(value, dict):
            raise ValueError(f"it holds {_kind(value)} where an object is expected")
        depth = _depth(value)
    except RecursionError:
        raise error(f"{what} is not valid JSON (it is nested too deeply): {remedy}") from None
    except ValueError as exc:  # json's and UTF-8's errors too
        raise error(f"{what} is not valid JSON ({exc}): {remedy}") from exc
    check(JSON_DEPTH, depth, what, error)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {_shown(key)} occurs twice")
        if not key.isprintable():
            raise ValueError(f"the key {_shown(key)} contains control characters")
        result[key] = value
    return result


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"an integer has {len(text)} digits, and at most {_LONGEST_INTEGER} are accepted")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_shown(text)} is out of range")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def _depth(value: Any) -> int:
    """How many levels deep ``value`` is: 1 for a number. Raises `ValueError` if UTF-8 cannot encode a text in it."""
    level, depth = [value], 0
    while level:
        depth += 1
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8")
        level = inner
    return depth


def _shown(text: str) -> str:
    """Text for a message: quoted, escaped and short."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "an array"
    return "text" if isinstance(value, str) else json.dumps(value)
