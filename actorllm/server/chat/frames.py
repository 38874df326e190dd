"""Frames of the chat to messages and back, as JSON or as msgpack; and errors in the protocol's words."""

import json
from typing import Any

import msgspec
from msgspec import Struct

from actorllm.errors import ActorLLMError, MalformedFrame
from actorllm.server.chat.messages import FromClient, FromServer, Name, Trouble
from actorllm.server.replies import INTERNAL_ERROR, shown


class Address(Struct, frozen=True):
    """What a refusal needs of a message: where its sender waits for the reply."""

    ref: str | None = None
    conversation: str | None = None


class FrameCodec:
    """One of the two encodings."""

    def __init__(self, *, is_binary: bool) -> None:
        self.is_binary = is_binary
        codec = msgspec.msgpack if is_binary else msgspec.json
        self._decoder: Any = codec.Decoder(FromClient)
        self._decode_leniently: Any = msgspec.msgpack.decode if is_binary else json.loads  # takes half a surrogate pair, too
        self._encoder: Any = codec.Encoder()
        self._name = "msgpack" if is_binary else "JSON"

    def decode(self, frame: str | bytes) -> FromClient:
        """Raises `MalformedFrame`, which says where."""
        try:
            return self._decoder.decode(frame)
        except msgspec.ValidationError as error:
            raise MalformedFrame(f"the frame is no message of this protocol: {error}") from error
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise MalformedFrame(f"the frame is not {self._name}: {error}") from error

    def address_of(self, frame: str | bytes) -> Address:
        """What can be read of the address of a frame that is malformed elsewhere."""
        try:
            found = self._decode_leniently(frame)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return Address()
        if not isinstance(found, dict):
            return Address()
        return Address(ref=_name(found.get("ref")), conversation=_name(found.get("conversation")))

    def encode(self, message: FromServer) -> bytes:
        return self._encoder.encode(message)


def _name(value: object) -> str | None:
    """The value, if it is a name that can be sent back."""
    try:
        name = msgspec.convert(value, Name)
        name.encode()
    except (msgspec.ValidationError, UnicodeEncodeError):
        return None
    return name


JSON_FRAMES = FrameCodec(is_binary=False)
MSGPACK_FRAMES = FrameCodec(is_binary=True)


def trouble_of(error: ActorLLMError) -> Trouble:
    """One of our errors, without what must not leave the server."""
    return Trouble(code=type(error).__name__, message=shown(error.message), status=error.status, param=error.param)


def internal_trouble() -> Trouble:
    """What is no error of ours; the log says the rest."""
    return Trouble(code="InternalError", message=INTERNAL_ERROR, status=500)
