"""What an actor takes and gives, by the annotations of its `receive`; messages to bytes and back.

The annotation of the message is a Struct or a union of tagged Structs, and msgspec validates against it. Replies are
checked against the return annotation; without one they arrive as msgspec's builtins (a Struct becomes a dict).
The plain path (`encode=False`) passes objects as they are and checks their class only, not their fields.
Knows no mailbox and no actor instance.
"""

import inspect
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec

from actorllm.runtime.faults import ContractViolation


class _Unsendable:
    """Travels in place of a message that could not be encoded, so that it fails where any bad message fails."""

    def __init__(self, error: ContractViolation) -> None:
        self.error = error


class Contract:
    """The contract of one class of actors. Raises `TypeError` when `receive` does not declare a usable one."""

    def __init__(self, actor_class: type, *, encode: bool) -> None:
        message_type, reply_type = _annotations(actor_class)
        self.urgent = frozenset(getattr(actor_class, "urgent", ()))
        self._name = actor_class.__name__
        self._is_encoded = encode
        self._classes = _classes(message_type)
        if not self._classes or not all(issubclass(member, msgspec.Struct) for member in self._classes):
            raise TypeError(f"{self._name}.receive must take a Struct or a union of tagged Structs, not {message_type}")
        self._reply_classes = _classes(reply_type)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(message_type).decode  # refuses a union without tags, encoded or not
        self._decode_reply = msgspec.msgpack.Decoder(reply_type).decode

    def pack(self, message: Any) -> Any:
        """What travels for `message`. Never raises: what cannot be encoded is refused by `unpack`."""
        if not self._is_encoded:
            return message
        try:
            return self._encode(message)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            return _Unsendable(self._violation("message", message, error))

    def unpack(self, payload: Any) -> Any:
        """The message behind `payload`; raises `ContractViolation`."""
        if not self._is_encoded:
            if isinstance(payload, self._classes):
                return payload
            raise self._violation("message", payload, None)
        if type(payload) is _Unsendable:
            raise payload.error
        try:
            return self._decode(payload)
        except Exception as error:  # boundary: the message's own __post_init__ runs in here
            raise ContractViolation(f"{self._name}: a message breaks the contract: {error}") from error

    def pack_reply(self, reply: Any) -> Any:
        """What travels for `reply`; raises `ContractViolation`."""
        if not self._is_encoded:
            if self._reply_classes and not isinstance(reply, self._reply_classes):
                raise self._violation("reply", reply, None)
            return reply
        try:
            return self._encode(reply)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise self._violation("reply", reply, error) from error

    def unpack_reply(self, payload: Any) -> Any:
        """The reply behind `payload`; raises `ContractViolation`."""
        if not self._is_encoded:
            return payload
        try:
            return self._decode_reply(payload)
        except Exception as error:  # boundary: the reply's own __post_init__ runs in here
            raise ContractViolation(f"{self._name}: a reply breaks the contract: {error}") from error

    def _violation(self, what: str, value: Any, cause: Exception | None) -> ContractViolation:
        violation = ContractViolation(
            f"{self._name}: a {what} of type {type(value).__name__} breaks the contract" + (f": {cause}" if cause else "")
        )
        violation.__cause__ = cause
        return violation


def _annotations(actor_class: Any) -> tuple[Any, Any]:
    """(message type, reply type) of the class's `receive`; a reply that is not annotated is Any."""
    hints = get_type_hints(actor_class.receive)
    parameters = list(inspect.signature(actor_class.receive).parameters)
    if len(parameters) != 2 or parameters[1] not in hints:
        raise TypeError(f"{actor_class.__name__}.receive must take one message and annotate it")
    return hints[parameters[1]], hints.get("return", Any)


def _classes(annotation: Any) -> tuple[type, ...]:
    """The Structs (and None) that `annotation` consists of; empty when there is anything else in it."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    are_structs = all(isinstance(m, type) and issubclass(m, (msgspec.Struct, NoneType)) for m in members)
    return tuple(members) if are_structs else ()
