"""`actorllm bench [MODEL]`: how fast a model is on this machine, and how far that is from what the machine could do.

The engine runs in this process, tokens in and tokens out, on random prompts. Printed as a table, and with --json and --plot
written to files. Nothing else should run meanwhile.
"""

import argparse
import os
import sys
from pathlib import Path

from msgspec.structs import replace

from actorllm.cli import event_loop
from actorllm.cli.engine_flags import add_engine_flags, read_settings
from actorllm.cli.serve import SWITCH_INTERVAL
from actorllm.errors import SettingsError
from actorllm.models.hub import check_place
from actorllm.settings import EngineSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the loads, where the results go, and the flags of a model in this process."""
    parser.add_argument("path", nargs="?", metavar="MODEL", help="a Hugging Face model folder, or ORG/NAME on the hub")
    parser.add_argument("--concurrency", type=_counts, default=(1, 4, 16, 32), metavar="N,N", help="requests at once (default 1,4,16,32)")
    parser.add_argument("--prompt-tokens", type=int, default=128, metavar="N", help="prompt of the decoding loads (default 128)")
    parser.add_argument("--output-tokens", type=int, default=128, metavar="N", help="output of the decoding loads (default 128)")
    parser.add_argument("--prefill", type=_counts, default=(512, 2048), metavar="N,N", help="prompts of one request (default 512,2048)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="runs of each load; medians are shown (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput and latency (.svg, .png or .pdf)")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and report; returns the exit code."""
    for name in ("prompt_tokens", "output_tokens", "rounds"):
        if getattr(arguments, name) < (2 if name == "output_tokens" else 1):
            raise SettingsError(f"--{name.replace('_', '-')} is too small: {getattr(arguments, name)}")
    for flag, path in (("--json", arguments.json), ("--plot", arguments.plot)):
        if path is not None:
            _check_file(flag, path)
    if arguments.plot is not None:
        _check_plotting(arguments.plot)
    settings = read_settings(arguments)
    check_place(settings.model.path, revision=settings.model.revision)
    from actorllm.cli.bench_loads import Loads, measure  # torch takes its seconds once nothing else is wrong
    from actorllm.cli.bench_report import as_json, draw, table

    loads = Loads(arguments.concurrency, arguments.prompt_tokens, arguments.output_tokens, arguments.prefill, arguments.rounds)
    sys.setswitchinterval(SWITCH_INTERVAL)
    results = event_loop.run(measure(_for_all_at_once(settings.engine(), max(arguments.concurrency)), loads))
    print(table(results))
    if arguments.json is not None:
        arguments.json.write_text(as_json(results))
    if arguments.plot is not None:
        draw(results, arguments.plot)
    return 0


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be counts such as 1,4,16")
    return counts


def _for_all_at_once(settings: EngineSettings, concurrency: int) -> EngineSettings:
    """The same with a row for each request: where some wait for others, there is nothing to measure."""
    max_running = max(settings.scheduling.max_running, concurrency)
    return replace(settings, scheduling=replace(settings.scheduling, max_running=max_running))


def _check_file(flag: str, path: Path) -> None:
    """Raises `SettingsError` for a file that could not be written once everything was measured."""
    if path.is_dir():
        raise SettingsError(f"{flag} {path} is a folder: name a file")
    if not path.parent.is_dir():
        raise SettingsError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SettingsError(f"{flag} {path} cannot be written: permission denied")


def _check_plotting(path: Path) -> None:
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise SettingsError("--plot needs matplotlib: pip install 'actorllm[plot]'") from error
    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in endings:
        raise SettingsError(f"--plot {path}: the ending chooses the format, and has to be one of {', '.join(endings)}")
