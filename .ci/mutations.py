"""Mutations of valid files and requests, each by a random generator alone: the same one gives the same result."""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from random import Random
from typing import Any


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Flip bits; cut off, delete, repeat, move or overwrite chunks."""
    result = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        start = random.randrange(len(result) + 1)
        end = min(len(result), start + random.choice((1, 2, 4, 16, 64, 1024)))
        match random.randrange(7):
            case 0 if start < len(result):
                result[start] ^= 1 << random.randrange(8)
            case 1 if start < len(result):
                result[start:end] = random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - start)
            case 2:
                del result[start:]
            case 3:
                del result[start:end]
            case 4:
                result[start:start] = result[start:end] * random.choice((1, 2, 1000))
            case 5:
                other = random.randrange(len(result) + 1)
                result[other:other] = result[start:end]
            case _:
                result[start:end] = random.randbytes(random.choice((1, 4, 64)))
    return bytes(result)


_WORDS = (b"9" * 5000, b"-1", b"1e999", b"NaN", b"\x1b[2J", b"../../etc/passwd", b"\xff\xfe", b"%00", b"," * 300, b"\0")


def mutate_text(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or replace a word by an odd one, or delete, repeat or swap lines."""
    if random.random() < 0.3:
        return mutate_bytes(data, random)
    lines = data.splitlines(keepends=True)
    for _ in range(random.choice((1, 1, 2, 4))):
        index = random.choice((0, random.randrange(len(lines)))) if lines else 0
        match random.randrange(4):
            case 0:
                del lines[index : index + 1]
            case 1:
                lines[index:index] = lines[index : index + 1] * random.choice((1, 2, 2000))
            case 2:
                lines.insert(random.randrange(len(lines) + 1), lines.pop(index) if lines else b"")
            case _:
                words = re.split(rb"(\W+)", lines[index]) if lines else [b""]
                words[random.randrange(len(words))] = random.choice(_WORDS)
                lines[index : index + 1] = [b"".join(words)]
    return b"".join(lines)


_VALUES: tuple[object, ...] = (None, True, False, 0, -1, 0.5, 1e308, 1 << 63, 10**15, "", "x" * 100_000, [], {}, [[]])
_VALUES += ({"a": 1}, [1, 2], float("nan"), float("inf"), "\x1b[2J", "\0", "\ud800", "../../etc/passwd", "\u202e", "1")
_RAW = {"@deep": "[" * 5000 + "]" * 5000, "@deeper": '{"a":' * 100_000, "@digits": "9" * 10_000, "@exponent": "1e999"}


def mutate_json(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or replace values by those of other types, by large and by deep ones, and keys by odd ones."""
    if random.random() < 0.2:
        return mutate_bytes(data, random)
    document = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        places = list(_places(document))
        parent, key = random.choice(places)
        match random.randrange(5):
            case 0:
                parent.pop(key)
            case 1 if isinstance(parent, dict):
                parent[random.choice(("", "\x1b", "x" * 1000, "\ud800", *parent))] = parent.pop(key)
            case 2:
                other, there = random.choice(places)
                parent[key] = json.loads(json.dumps(other[there]))
            case 3:
                parent[key] = random.choice(tuple(_RAW))
            case _:
                parent[key] = random.choice(_VALUES)
        if not document:
            break
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    if random.random() < 0.1:  # a key that occurs twice
        text = text[:-1] + f",{text[1:]}" if text.startswith("{") else text
    return text.encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each (container, key or index) in a document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def mutate_zip(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`, or change the members of the archive, so that their checksums are right."""
    if random.random() < 0.4:
        return mutate_bytes(data, random)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        chosen = random.choice(names)
        for name in names:
            member = old.read(name)
            if name == chosen:
                match random.randrange(5):
                    case 0:
                        continue
                    case 1:
                        member += bytes(20_000_000)
                    case 2:  # NumPy's header, as text
                        member = member[:10] + mutate_text(member[10:128], random)[:118].ljust(118) + member[128:]
                    case 3:
                        member = old.read(random.choice(names))
                    case _:
                        member = mutate_bytes(member, random)
            new.writestr(name, member)
    return stream.getvalue()


def mutate_picture(data: bytes, random: Random) -> bytes:
    """As `mutate_bytes`; half of all PNGs get the right checksums, without which no decoder reads on."""
    mutated = mutate_bytes(data, random)
    signature = b"\x89PNG\r\n\x1a\n"
    if not mutated.startswith(signature) or random.random() < 0.5:
        return mutated
    result, start = bytearray(mutated), len(signature)
    while start + 12 <= len(result):
        end = start + 8 + int.from_bytes(result[start : start + 4], "big")
        result[end : end + 4] = zlib.crc32(result[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(result)
