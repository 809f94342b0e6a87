"""Sizes and ages as `adedge run` takes them: "500MB", "1d"."""

from __future__ import annotations

import pytest
import typer

from adedge.cli.evidence import age_in_seconds, size_in_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1", 1),
        ("1000000", 1_000_000),
        ("12b", 12),
        ("3k", 3_000),
        ("3kB", 3_000),
        ("500MB", 500_000_000),
        ("500 mb", 500_000_000),
        ("  5GB ", 5_000_000_000),
        ("1.5 GB", 1_500_000_000),
        ("0.1k", 100),
        ("2T", 2_000_000_000_000),
        ("1000000TB", 10**18),
    ],
)
def test_sizes_are_in_powers_of_1000(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", " ", "MB", "b", "five GB", "5 apples", "5 GiB", "5PB", "-1", "-5GB", "+5", "1e9", ".5G", "5.", "1,5GB"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size: give a number with a unit, such as 500MB or 5GB"):
        size_in_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("90s", 90),
        ("30m", 1_800),
        ("12h", 43_200),
        ("1d", 86_400),
        ("2w", 1_209_600),
        ("1.5 H", 5_400),
        (" 0.5d", 43_200),
    ],
)
def test_ages_are_in_seconds(text: str, seconds: float) -> None:
    assert age_in_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "1", "60", "0d", "0.0s", "-1d", "1 day", "1y", "1d12h", "inf", "1e3s"])
def test_what_is_no_age_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no age: give a number with a unit, such as 12h or 1d"):
        age_in_seconds(text)


@pytest.mark.parametrize("digits", ["\u0665", "\uff15", "\u00b2"], ids=["Arabic", "full width", "superscript"])
def test_digits_of_other_scripts_are_refused(digits: str) -> None:
    with pytest.raises(typer.BadParameter, match="is no size"):
        size_in_bytes(f"{digits}GB")
    with pytest.raises(typer.BadParameter, match="is no age"):
        age_in_seconds(f"{digits}d")
