"""JSON from anywhere: what is accepted is what `json` reads, and everything odd is one sentence that names the file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adedge.errors import BundleError, EngineError
from adedge.json_files import parse_json
from adedge.limits import VARIABLE

KEYS = st.text(st.sampled_from('ab .-/\\"{[,:é漢'), max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(value=st.dictionaries(KEYS, VALUES, max_size=4), ascii_only=st.booleans())
def test_ordinary_objects_are_read_as_json_reads_them(value: dict[str, object], ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(), "a.json", BundleError) == value


@pytest.mark.fault("hostile JSON")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[]", "an array where an object is expected"),
        (b'"text"', "text where an object is expected"),
        (b"null", "null where an object is expected"),
        (b"3", "3 where an object is expected"),
        (b"", "Expecting value"),
        (b'{"a": 1', "delimiter"),
        (b'{"a": 1} {}', "Extra data"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not a number in JSON"),
        (b'{"a": 1e999}', "the number '1e999' is out of range"),
        (b'{"a": ' + b"9" * 21 + b"}", "an integer has 21 digits, and at most 20"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "an integer has 100000 digits"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"a": {"b": 2, "\\u0062": 3}}', "the key 'b' occurs twice"),
        (b'{"\\u001b[2J": 1}', r"the key '\x1b[2J' contains control characters"),
        (b'{"a\\nb": 1}', r"the key 'a\nb' contains control characters"),
        (b'{"\\ud800": 1}', r"the key '\ud800' contains control characters"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\x01"}', "Invalid control character"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        ('{"a": 1}'.encode("utf-16"), "can't decode byte 0xff"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": ' * 100_000, "it is nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "it is nested too deeply"),
    ],
)
def test_everything_else_is_refused_with_its_name_and_a_remedy(data: bytes, reason: str) -> None:
    with pytest.raises(EngineError) as caught:
        parse_json(data, "x/engine.json", EngineError, "build it again")
    message = str(caught.value)
    assert message.startswith("x/engine.json is not valid JSON (")
    assert reason in message
    assert message.endswith("): build it again")
    assert message.isprintable()
    assert len(message) < 250


def test_depth_and_size_have_limits_that_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b'{"a": ' + b"[" * 98 + b"0" + b"]" * 98 + b"}"  # 1 object, 98 arrays, 1 number
    assert parse_json(deep, "a.json", BundleError)
    deeper = deep.replace(b"0", b"[0]")
    with pytest.raises(BundleError, match="a.json has 101 levels, and at most 100 are accepted"):
        parse_json(deeper, "a.json", BundleError)
    large = b'{"a": "' + b"x" * (64 << 20) + b'"}'
    with pytest.raises(BundleError, match="a.json has 64 MB, and at most 64 are accepted"):
        parse_json(large, "a.json", BundleError)
    monkeypatch.setenv(VARIABLE, "2")
    assert parse_json(deeper, "a.json", BundleError)
    assert len(parse_json(large, "a.json", BundleError)["a"]) == 64 << 20


@pytest.mark.fault("hostile JSON", tries=500)
@settings(max_examples=500)
@given(data=st.binary() | st.text(st.sampled_from('{}[]",:0123456789.eE+-tfn \\uau\n')).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        value = parse_json(data, "a.json", BundleError)
    except BundleError:
        return
    assert value == json.loads(data)
