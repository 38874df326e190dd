"""What the benchmark is asked for on its command line."""

import argparse
from pathlib import Path


def parsed(description: str) -> argparse.Namespace:
    """The command line's arguments; ends the process for --help and mistakes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--tune", action="store_true", help="look for faster ways to cut all kernels first, and keep them: minutes more")
    parser.add_argument("--tune-minutes", type=float, default=20, help="what is not tuned by then stays as it is, and is next time's")
    parser.add_argument("--out", type=Path, default=Path(), help="where gpu.json and gpu.svg go")
    parser.add_argument("--minutes", type=float, default=7.5, help="what is not measured by then is left out")
    parser.add_argument("--rehearse", action="store_true", help="small sizes in the interpreter, without a GPU")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)  # of a process of its own: "tune", or "from" and an index
    arguments = parser.parse_args()
    if arguments.tune and arguments.rehearse:
        parser.error("--tune keeps what is fastest on a GPU, and --rehearse has none: give one of them")
    return arguments
