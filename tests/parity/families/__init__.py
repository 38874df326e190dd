"""Random tiny checkpoints of every architecture that has a plugin, one module for each plugin folder.

A module's `CASES` maps an architecture to a function that makes one: `(seed, directory) -> reference model`. The same seed
always gives the same model; consecutive seeds walk through the features of an architecture, so that two already cover many.
"""

from importlib import import_module
from pathlib import Path

from tests.parity.families.case import Build

CASES: dict[str, Build] = {}
for _path in sorted(Path(__file__).parent.glob("*.py")):
    if _path.stem not in ("__init__", "case"):
        CASES |= import_module(f"{__name__}.{_path.stem}").CASES
