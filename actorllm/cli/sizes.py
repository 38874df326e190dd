"""Byte counts as people write them."""

import argparse
import re

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def byte_count(text: str) -> int:
    """`2GiB`, `512MB` or `1000000` as a number of bytes; for argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes; write 2GiB, 512MB or 1000000")
    return int(float(match[1]) * _UNITS[match[2] or ""])
