"""Reads the commands, flags and routes out of README.md, as a reader would see them. Knows none of them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = {"actorllm", "curl", "git", "hf", "make", "pip", "python", "python3"}
"""What a command begins with, whatever folder stands before it."""


@dataclass(frozen=True)
class Readme:
    """Commands by their first words; in `flags` the inline code that begins with --, in `routes` that of the paragraph on routes."""

    commands: tuple[str, ...]
    flags: tuple[str, ...]
    routes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "Readme":
        prose = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)  # Python, and the tree
        block = re.sub(r"\\\n\s*", "", "\n".join(re.findall(r"^    (.+)$", prose, re.MULTILINE)))
        code = [" ".join(each.split()) for each in re.findall(r"`([^`]+)`", re.sub(r"^    .*$", "", prose, flags=re.MULTILINE))]
        lines = [re.sub(r"\s{2,}#\s.*", "", line) for line in block.splitlines()]
        lines += [each for each in code if " " in each and program(each) in PROGRAMS]
        routes = re.search(r"^Routes: (.*?)\. ", prose, re.DOTALL | re.MULTILINE)
        assert routes, "README.md lists no routes"
        return cls(
            commands=tuple(dict.fromkeys(lines)),
            flags=tuple(dict.fromkeys(each.replace("\\|", "|") for each in code if each.startswith("--"))),
            routes=tuple(re.findall(r"`(/[^`]*)`", routes[1])),
        )

    def of(self, *programs: str) -> list[str]:
        """The commands of these programs."""
        return [command for command in self.commands if program(command) in programs]


def program(command: str) -> str:
    """`pip` of `.venv/bin/pip install ...`."""
    return command.split()[0].rpartition("/")[2]


def forms(command: str) -> list[str]:
    """What a synopsis stands for: optional parts are given, and each of `int8|int4` in turn."""
    command = re.sub(r"\[flags[^]]*\]", "", command).replace("[", "").replace("]", "")
    choice = re.search(r"[\w.-]+(?:\|[\w.-]+)+", command)
    return [command.replace(choice[0], each) for each in choice[0].split("|")] if choice else [command]


def flags_of(command: str) -> list[str]:
    """`--rounds` of `... --rounds 3`."""
    return [word for word in shlex.split(command) if word.startswith("--")]
