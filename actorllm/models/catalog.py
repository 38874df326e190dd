"""Which architectures are installed, and the way to their classes.

Listing reads package metadata only: no plugin is imported, so a broken one can never break a command that does not need
it. Knows no architecture.
"""

import difflib
import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import TYPE_CHECKING, Any

from actorllm.errors import PluginAmbiguous, PluginBroken, PluginInvalid, PluginMissing, PluginOutdated
from actorllm.models import CONTRACT_VERSION, ENTRY_POINT_GROUP

if TYPE_CHECKING:
    from actorllm.models.contract import CausalLM

logger = logging.getLogger(__name__)
_ANY_VERSION = re.compile(r"actorllm\.models\.v(\d+)")


@dataclass(frozen=True)
class Plugin:
    """One registered architecture: where it comes from and which version of the contract it speaks.

    `summary` is what its distribution says of itself.
    """

    architecture: str
    distribution: str
    version: str
    contract: int
    entry_point: EntryPoint
    summary: str = ""

    def __str__(self) -> str:
        return f"{self.architecture} = {self.entry_point.value} of {self.distribution} {self.version}"


class Catalog:
    """All registered architectures."""

    def __init__(self, plugins: Iterable[Plugin]) -> None:
        self.plugins = tuple(sorted(plugins, key=lambda plugin: (plugin.architecture, plugin.distribution)))

    @classmethod
    def discover(cls, installed: Iterable[Distribution] | None = None) -> "Catalog":
        """The plugins of the installed distributions. An editable install that is listed twice counts once."""
        found: dict[tuple[str, str, str], Plugin] = {}
        for distribution in distributions() if installed is None else installed:
            for entry_point in _entry_points(distribution):
                if match := _ANY_VERSION.fullmatch(entry_point.group):
                    name, version, summary = _identity(distribution)
                    plugin = Plugin(entry_point.name, name, version, int(match[1]), entry_point, summary)
                    found.setdefault((name, entry_point.group, entry_point.name), plugin)
        return cls(found.values())

    def listing(self) -> list[dict[str, Any]]:
        """What is known of each plugin without importing it; `state` is "ready", "ambiguous" or "outdated"."""
        return [
            {
                "architecture": plugin.architecture,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "summary": plugin.summary,
                "contract": plugin.contract,
                "entry_point": plugin.entry_point.value,
                "state": self._state(plugin),
            }
            for plugin in self.plugins
        ]

    def find(self, architecture: str) -> Plugin:
        """The one plugin that serves the architecture. Raises `PluginMissing`, `PluginAmbiguous` or `PluginOutdated`."""
        named = [plugin for plugin in self.plugins if plugin.architecture == architecture]
        current = [plugin for plugin in named if plugin.contract == CONTRACT_VERSION]
        if len(current) == 1:
            return current[0]
        if current:
            rivals = "; ".join(map(str, current))
            raise PluginAmbiguous(f"several plugins serve {architecture}: {rivals}. Uninstall all but one")
        if named:
            plugin = named[0]
            raise PluginOutdated(
                f"{plugin} speaks version {plugin.contract} of the plugin contract, this is version {CONTRACT_VERSION}: "
                f"install a release of {plugin.distribution} that registers under {ENTRY_POINT_GROUP!r}"
            )
        raise PluginMissing(self._missing_message(architecture))

    def load(self, architecture: str) -> "type[CausalLM]":
        """The architecture's class. Raises one of the five `PluginError`s."""
        from actorllm.models.contract import CausalLM  # imports torch, which listing does without

        plugin = self.find(architecture)
        try:
            model_class = plugin.entry_point.load()
        except (Exception, SystemExit) as error:  # boundary: plugin load
            raise PluginBroken(
                f"importing {plugin} raised {type(error).__name__}: {error}. Reinstall {plugin.distribution}, or tell its author"
            ) from error
        if not inspect.isclass(model_class) or not issubclass(model_class, CausalLM):
            raise PluginInvalid(f"{plugin} is not a subclass of actorllm.models.contract.CausalLM: tell its author")
        if not callable(getattr(getattr(model_class, "config_class", None), "from_hf", None)):
            raise PluginInvalid(f"{plugin} has no config_class with a from_hf method: tell its author")
        left_out = [name for name in dir(model_class) if getattr(getattr(model_class, name), "__isabstractmethod__", False)]
        if left_out:
            raise PluginInvalid(f"{plugin} does not define {', '.join(left_out)}, which the contract asks for: tell its author")
        return model_class

    def _state(self, plugin: Plugin) -> str:
        if plugin.contract != CONTRACT_VERSION:
            return "outdated"
        rivals = [other for other in self.plugins if other.architecture == plugin.architecture and other.contract == plugin.contract]
        return "ready" if rivals == [plugin] else "ambiguous"

    def _missing_message(self, architecture: str) -> str:
        known = sorted({plugin.architecture for plugin in self.plugins})
        close = difflib.get_close_matches(architecture, known, n=3)
        hint = f" Close names: {', '.join(close)}." if close else ""
        return (
            f"no installed plugin serves {architecture}.{hint} Installed: {', '.join(known) or 'none'}. "
            "Install a plugin package for it, or write one: actorllm plugin new"
        )


def _identity(distribution: Distribution) -> tuple[str, str, str]:
    """Name, version and summary, also of a distribution whose metadata is damaged: listing must not fail on it."""
    try:
        metadata = distribution.metadata
        summaries = metadata.get_all("Summary") or [""]
        return str(metadata["Name"]), str(metadata["Version"]), str(summaries[0])
    except (TypeError, KeyError, OSError):
        return "a distribution without metadata", "?", ""


def _entry_points(distribution: Distribution) -> Iterable[EntryPoint]:
    """The distribution's entry points; none, with a warning, where the file cannot be read: listing must not fail on it."""
    try:
        return distribution.entry_points
    except Exception as error:  # boundary: plugin load
        logger.warning("entry_points.txt of %s cannot be read: %s", _identity(distribution)[0], error)
        return ()


def find_model(architecture: str) -> "type[CausalLM]":
    """The class of an installed architecture. Raises one of the five `PluginError`s."""
    return Catalog.discover().load(architecture)
