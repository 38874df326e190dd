"""`actorllm chat [MODEL] [--url URL]`: a conversation in the terminal, with a model in this process or on a server.

Where input or output is no terminal, all input is one message and its answer all output. Exit codes: 0, 2 for what cannot
be had, 130 for Ctrl-C while no answer is coming that it could stop.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import NoReturn

from actorllm.cli.chat_models import ChatModel, local_model, remote_model
from actorllm.cli.conversation import Conversation
from actorllm.cli.engine_flags import add_engine_flags, given_flags, read_settings
from actorllm.errors import SettingsError
from actorllm.messages import SamplingParams
from actorllm.models.hub import check_place

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Who answers, how, and the flags of a model in this process."""
    parser.add_argument(
        "path",
        nargs="?",
        metavar="MODEL",
        help="a Hugging Face model folder, or ORG/NAME on the hub (default: the demo model); with --url, the server's name for it",
    )
    parser.add_argument("--url", help="talk to the server there, any with OpenAI's API: http://HOST:PORT")
    parser.add_argument("--api-key-env", metavar="NAME", help="the environment variable that holds the server's API key")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--temperature", type=float, help="0 always takes the likeliest token (default: the model's)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer in tokens (default: what fits the context)")
    add_engine_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Chat until the user leaves; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("huggingface_hub").propagate = False  # its library prints what it logs itself
    signal.signal(signal.SIGINT, lambda *_: _leave(INTERRUPTED))  # what loads cannot be interrupted
    opening = _model(arguments)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    message = None if is_terminal else sys.stdin.read().strip()
    if message == "":
        raise SettingsError("there is no message: type one in a terminal, or send it to the standard input")
    try:
        return asyncio.run(_chat(opening, Conversation(arguments.system), message))
    except BrokenPipeError:  # whoever reads the output has enough
        _leave(1)
    except asyncio.CancelledError:
        return TERMINATED


def _model(arguments: argparse.Namespace) -> AbstractAsyncContextManager[ChatModel]:
    sampling = {name: getattr(arguments, name) for name in ("temperature", "max_tokens") if getattr(arguments, name) is not None}
    SamplingParams(**sampling)  # what is out of range is told before anything is loaded
    if arguments.url is None:
        if arguments.api_key_env is not None:
            raise SettingsError("--api-key-env is for a server: give --url too")
        settings = read_settings(arguments)
        check_place(settings.model.path, revision=settings.model.revision)
        if sys.stderr.isatty():
            print(f"actorllm: loading {settings.model.path or 'the demo model, a tiny one that knows ActorLLM and little else'}", file=sys.stderr)
        return local_model(settings.engine(), sampling)
    given = given_flags(arguments)
    given.get("model", {}).pop("path", None)
    names = sorted(f"--{name.replace('_', '-')}" for part in given.values() for name in part)
    if names:
        raise SettingsError(f"{', '.join(names)}: these are for a model in this process, and --url names a server")
    return remote_model(arguments.url, arguments.path, sampling=sampling, api_key=_api_key(arguments.api_key_env, os.environ))


def _api_key(variable: str | None, environment: Mapping[str, str]) -> str | None:
    if variable is None:
        return None
    if not environment.get(variable):
        raise SettingsError(f"--api-key-env {variable}: there is no such environment variable; set it to the server's key")
    return environment[variable]


async def _chat(opening: AbstractAsyncContextManager[ChatModel], conversation: Conversation, message: str | None) -> int:
    """Answer `message`, or talk with whoever sits at the terminal where it is None."""
    async with opening as model:
        if message is None:
            await _talk(model, conversation)
        else:
            conversation.ask(message)
            await _print_answer(model, conversation)
    return 0


async def _talk(model: ChatModel, conversation: Conversation) -> None:
    from actorllm.cli.chat_loop import COMMANDS, ChatLoop
    from actorllm.cli.chat_terminal import Terminal

    chat = ChatLoop(model, Terminal(COMMANDS), conversation)
    loop, talking = asyncio.get_running_loop(), asyncio.ensure_future(chat.run())
    loop.add_signal_handler(signal.SIGTERM, talking.cancel)  # not before the terminal is as it was
    outside = signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(chat.interrupt))
    try:
        await talking
    finally:
        signal.signal(signal.SIGINT, outside)


async def _print_answer(model: ChatModel, conversation: Conversation) -> None:
    text = ""
    async with aclosing(model.answer(conversation.messages)) as deltas:
        async for delta in deltas:
            text = delta.text or text
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    if not text.endswith("\n"):
        sys.stdout.write("\n")


def _leave(code: int) -> NoReturn:
    """End the process without waiting for any thread."""
    with suppress(OSError):
        sys.stderr.write("\n")
        sys.stderr.flush()
    os._exit(code)
