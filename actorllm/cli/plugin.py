"""`actorllm plugin list | check | new`: what is installed, whether a plugin holds the contract, and a draft of a new one.

`list` reads package metadata only and imports no plugin.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actorllm.errors import SettingsError
from actorllm.models.catalog import Catalog

if TYPE_CHECKING:
    from actorllm.cli.plugin_draft import PluginDraft
    from actorllm.testing.check import CheckResult

CHECK_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`list [--json]`, `check NAME [--config FILE] [--checkpoint DIR]` and `new NAME --from DIR_OR_HUB_ID`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list installed architectures without importing any plugin")
    listing.add_argument("--json", action="store_true", help="print JSON")
    check = actions.add_parser("check", help="run the conformance kit on a plugin, one line a check")
    check.add_argument("name", metavar="NAME", help="an architecture, as LlamaForCausalLM, or a distribution, as actorllm-llama")
    check.add_argument("--config", type=Path, metavar="FILE", help="a tiny config.json (default: the plugin's own)")
    check.add_argument("--checkpoint", type=Path, metavar="DIR", help="check with this model's weights too; they are all loaded")
    new = actions.add_parser("new", help="write a plugin package, drafted from a model")
    new.add_argument("name", metavar="NAME", help="the new distribution, for example actorllm-mine; also its folder")
    new.add_argument(
        "--from", dest="source", required=True, metavar="DIR_OR_HUB_ID", help="a model's folder, or its name on the hub"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the action; 1 if a check failed."""
    if arguments.action == "list":
        return _list(Catalog.discover().listing(), as_json=arguments.json)
    return _check(arguments) if arguments.action == "check" else _new(arguments.name, arguments.source)


def _list(plugins: list[dict[str, Any]], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(plugins, indent=2))
        return 0
    width = max((len(plugin["architecture"]) for plugin in plugins), default=0)
    for plugin in plugins:
        state = "" if plugin["state"] == "ready" else f"  {plugin['state'].upper()}"
        print(
            f"{plugin['architecture']:<{width}}  {plugin['distribution']} {plugin['version']}  "
            f"contract v{plugin['contract']}  {plugin['entry_point']}{state}"
        )
    if not plugins:
        print("no model plugin is installed", file=sys.stderr)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars would break up the report
    catalog = Catalog.discover()
    served = [plugin.architecture for plugin in catalog.plugins if plugin.distribution == arguments.name] or [arguments.name]
    if len(served) > 1 and (arguments.config or arguments.checkpoint):
        raise SettingsError(f"{arguments.name} serves several architectures: name the one of the model, {', '.join(served)}")
    passed = [_check_architecture(catalog, architecture, arguments) for architecture in served]
    return 0 if all(passed) else CHECK_FAILED


def _check_architecture(catalog: Catalog, architecture: str, arguments: argparse.Namespace) -> bool:
    """Print the report of one architecture; whether no check failed."""
    from actorllm.testing.checkpoint_checks import CheckpointCase, run_checkpoint_checks  # torch only where it is needed
    from actorllm.testing.model_checks import ModelCase, run_checks, tiny_config

    model_class = catalog.load(architecture)
    config = tiny_config(model_class, architecture) if arguments.config is None else _read_config(arguments.config)
    checkpoint = None if arguments.checkpoint is None else CheckpointCase.read(model_class, arguments.checkpoint)
    print(catalog.find(architecture), flush=True)
    results = run_checks(ModelCase(model_class, config))
    if checkpoint is not None:
        results += run_checkpoint_checks(checkpoint)
    print("\n".join(_report(results)))
    num_failed, num_skipped = sum(bool(result.reason) for result in results), sum(bool(result.skipped) for result in results)
    skipped = f", {num_skipped} could not be made" if num_skipped else ""
    print(f"{len(results) - num_failed - num_skipped} of {len(results)} checks passed for {architecture}{skipped}", flush=True)
    return num_failed == 0


def _report(results: "Sequence[CheckResult]") -> Iterator[str]:
    """A line for each check; a reason that was told already is not told again."""
    width, told = max(len(result.name) for result in results), {}
    for result in results:
        verdict = "FAIL" if result.reason else "skip" if result.skipped else "ok"
        text = result.reason or result.skipped or f"{result.about} ({result.seen})"
        text = f"as {told[text]}" if text in told else text
        told.setdefault(text, result.name)
        yield f"{verdict:<4}  {result.name:<{width}}  {' '.join(text.split())}"


def _new(name: str, source: str) -> int:
    from actorllm.cli.plugin_draft import PluginDraft
    from actorllm.cli.plugin_source import read_model

    draft, folder = PluginDraft(name, *read_model(source)), Path(name)
    texts = draft.files()
    if folder.exists():
        raise SettingsError(f"{folder} exists already: choose another name, or remove it")
    try:
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            print(folder / path)
    except OSError as error:
        raise SettingsError(f"cannot write {folder}: {error.strerror}") from error
    print("\n".join(_left_to_do(draft, source)))
    return 0


def _left_to_do(draft: "PluginDraft", source: str) -> Iterator[str]:
    """What the author has to know after the list of files."""
    model = f"{draft.package}/model.py"
    if draft.unread():
        yield f"keys of config.json that {model} has to read yet: {', '.join(draft.unread())}"
    if num_marked := sum("<-" in line for line in draft.tree()):
        yield f"kinds of tensors that do not fit the draft yet: {num_marked}, marked at the head of {model}"
    for rival in Catalog.discover().plugins:
        if rival.architecture == draft.architecture:
            yield f"{rival.distribution} serves {draft.architecture} already: uninstall one of the two before you use the other"
    checkpoint = f" --checkpoint {source}" if Path(source).is_dir() and draft.shapes else ""
    yield f"next: pip install -e {draft.name} && actorllm plugin check {draft.architecture}{checkpoint}"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {path.name}: {error}") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{path.name} is not a JSON object")
    return config
