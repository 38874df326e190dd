"""`actorllm plugin list | check`: what is installed, and whether a plugin holds the contract.

`list` reads package metadata only and imports no plugin.
"""

import argparse
import json
import sys
from pathlib import Path

from actorllm.errors import SettingsError
from actorllm.models.catalog import Catalog, Plugin

CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list [--json]` and `check ARCHITECTURE --config FILE`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list installed architectures without importing any plugin")
    listing.add_argument("--json", action="store_true", help="print JSON")
    check = actions.add_parser("check", help="run the conformance kit on a plugin")
    check.add_argument("architecture", metavar="ARCHITECTURE", help="as in config.json, for example LlamaForCausalLM")
    check.add_argument("--config", type=Path, metavar="FILE", help="a tiny config.json (default: a built-in tiny one)")


def run(arguments: argparse.Namespace) -> int:
    """Run the action; 1 if a check failed."""
    if arguments.action == "list":
        return _list(Catalog.discover().plugins, as_json=arguments.json)
    return _check(arguments.architecture, arguments.config)


def _list(plugins: tuple[Plugin, ...], *, as_json: bool) -> int:
    rows = [
        {
            "architecture": plugin.architecture,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "contract": plugin.contract,
            "entry_point": plugin.entry_point.value,
        }
        for plugin in plugins
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max((len(plugin.architecture) for plugin in plugins), default=0)
    for plugin in plugins:
        print(
            f"{plugin.architecture:<{width}}  {plugin.distribution} {plugin.version}  "
            f"contract v{plugin.contract}  {plugin.entry_point.value}"
        )
    if not plugins:
        print("no model plugin is installed", file=sys.stderr)
    return 0


def _check(architecture: str, path: Path | None) -> int:
    from actorllm.testing.model_checks import ModelCase, run_checks, tiny_config  # torch only where it is needed

    model_class = Catalog.discover().load(architecture)
    if path is None:
        config = tiny_config(model_class, architecture)
    else:
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read {path.name}: {error}") from error
    results = run_checks(ModelCase(model_class, config))
    for result in results:
        print(f"{'FAIL' if result.reason else 'ok  '}  {result.name:<20} {result.reason or result.about}")
    num_failed = sum(bool(result.reason) for result in results)
    print(f"{len(results) - num_failed} of {len(results)} checks passed for {architecture}")
    return CHECK_FAILED if num_failed else 0
