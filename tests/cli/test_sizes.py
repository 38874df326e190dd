"""Byte counts as people write them."""

import argparse

import pytest

from actorllm.cli.sizes import byte_count


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000000", 10**6), ("2GiB", 2**31), ("512MB", 512 * 10**6), ("1.5gib", 3 * 2**29), ("4k", 4000), (" 3 KiB ", 3072), ("7B", 7)],
)
def test_what_is_read(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2TiB", "1e9", "two", "1 2"])
def test_what_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="2GiB"):
        byte_count(text)
