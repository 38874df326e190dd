"""`actorllm COMMAND`: reads the arguments and hands over. A command's module is imported when it is called, so listing
plugins needs no torch."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from actorllm import __version__
from actorllm.errors import ActorLLMError

COMMANDS = {
    "serve": "serve a model over HTTP",
    "chat": "talk with a model, in this process or on a server",
    "bench": "measure a model on this machine",
    "quantize": "write a copy of a model with int8 or int4 weights",
    "plugin": "list, check and draft model plugins",
}
USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for a wrong flag, setting or model, 130 for Ctrl-C where the command has
    no way of its own to stop."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = argparse.ArgumentParser(prog="actorllm", description="An LLM inference server made of asyncio actors.")
        parser.add_argument("--version", action="version", version=f"actorllm {__version__}")
        commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
        parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}
        if given[:1] and given[0] in parsers:
            import_module(f"actorllm.cli.{given[0]}").add_arguments(parsers[given[0]])
        parsed, unknown = parser.parse_known_args(given)
        if unknown:  # the command tells, with its own usage
            parsers[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return import_module(f"actorllm.cli.{parsed.command}").run(parsed)
    except ActorLLMError as error:
        print(f"actorllm: error: {error.message}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
