"""README's table of architectures, made from the catalog of the checkout's plugins: `make readme` writes it anew.

The plugins are read from their pyproject.toml, so what else is installed, or is not, changes nothing.
"""

import tomllib
from importlib.metadata import Distribution
from itertools import groupby
from pathlib import Path

from actorllm.models.catalog import Catalog

BEGIN, END = "<!-- architectures: written by `make readme` -->\n", "<!-- end of architectures -->"


class Project(Distribution):
    """A plugin's folder, seen as the distribution that it becomes when it is installed."""

    def __init__(self, pyproject: Path) -> None:
        project = tomllib.loads(pyproject.read_text())["project"]
        lines = [f"Name: {project['name']}", f"Version: {project['version']}", f"Summary: {project['description']}"]
        entries = ["[actorllm.models.v1]"]
        entries += [f"{name} = {value}" for name, value in project["entry-points"]["actorllm.models.v1"].items()]
        self._files = {"METADATA": "\n".join(["Metadata-Version: 2.1", *lines, ""]), "entry_points.txt": "\n".join(entries)}

    def read_text(self, filename: str) -> str | None:
        return self._files.get(filename)

    def locate_file(self, path):
        return path


def checkout_catalog(repository: Path) -> Catalog:
    """The architectures that the folders of `plugins/` register."""
    return Catalog.discover(map(Project, sorted(repository.glob("plugins/*/pyproject.toml"))))


def table(repository: Path) -> str:
    """One row for each plugin: its distribution, what it says of itself, and its architectures."""
    rows = ["| plugin | serves | architectures, as config.json names them |", "|---|---|---|"]
    plugins = sorted(checkout_catalog(repository).plugins, key=lambda plugin: plugin.distribution)
    for name, group in groupby(plugins, key=lambda plugin: plugin.distribution):
        members = list(group)
        summary = members[0].summary.replace(" for ActorLLM", "")
        rows.append(f"| {name} | {summary} | {', '.join(plugin.architecture for plugin in members)} |")
    return "\n".join(rows) + "\n"


def with_table(repository: Path) -> str:
    """README's text with the table as it should be."""
    before, rest = (repository / "README.md").read_text().split(BEGIN)
    return before + BEGIN + table(repository) + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    (root / "README.md").write_text(with_table(root))
