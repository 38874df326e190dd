"""Frames of the chat to messages and back, as JSON or as msgpack; and errors in the protocol's words."""

from typing import Any

import msgspec

from actorllm.errors import ActorLLMError, MalformedFrame
from actorllm.server.chat.messages import FromClient, FromServer, Trouble
from actorllm.server.replies import INTERNAL_ERROR, shown


class FrameCodec:
    """One of the two encodings."""

    def __init__(self, *, is_binary: bool) -> None:
        self.is_binary = is_binary
        codec = msgspec.msgpack if is_binary else msgspec.json
        self._decoder: Any = codec.Decoder(FromClient)
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

    def encode(self, message: FromServer) -> bytes:
        return self._encoder.encode(message)


JSON_FRAMES = FrameCodec(is_binary=False)
MSGPACK_FRAMES = FrameCodec(is_binary=True)


def trouble_of(error: ActorLLMError) -> Trouble:
    """One of our errors, without what must not leave the server."""
    return Trouble(code=type(error).__name__, message=shown(error.message), status=error.status, param=error.param)


def internal_trouble() -> Trouble:
    """What is no error of ours; the log says the rest."""
    return Trouble(code="InternalError", message=INTERNAL_ERROR, status=500)
