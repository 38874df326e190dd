"""Which annotations of `receive` make a contract, and what it does to messages and replies."""

from typing import Any

import pytest
from msgspec import Struct

from actorllm.runtime.actor import Actor
from actorllm.runtime.codec import Contract
from actorllm.runtime.faults import ContractViolation
from actorllm.runtime.supervisor import Supervisor


class Plain(Struct, frozen=True):
    value: int


class Tagged(Struct, frozen=True, tag=True):
    value: int


class Checked(Struct, frozen=True, tag=True):
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise LookupError("negative")


class OneUntagged:
    async def receive(self, message: Plain) -> int: ...  # type: ignore[empty-body]


class Union:
    async def receive(self, message: Tagged | Checked) -> list[Tagged]: ...  # type: ignore[empty-body]


class NoAnnotation:
    async def receive(self, message): ...


class NotAStruct:
    async def receive(self, message: dict[str, int]) -> None: ...


class UntaggedUnion:
    async def receive(self, message: Plain | Tagged) -> None: ...


class TwoParameters:
    async def receive(self, message: Tagged, more: int) -> None: ...


@pytest.mark.parametrize("actor", [NoAnnotation, NotAStruct, UntaggedUnion, TwoParameters])
def test_unusable_contracts_are_refused(encode, actor):
    with pytest.raises(TypeError):
        Contract(actor, encode=encode)


def test_round_trips(encode):
    contract = Contract(OneUntagged, encode=encode)
    assert contract.unpack(contract.pack(Plain(3))) == Plain(3)
    contract = Contract(Union, encode=encode)
    for message in (Tagged(1), Checked(2)):
        assert contract.unpack(contract.pack(message)) == message
    assert contract.unpack_reply(contract.pack_reply([Tagged(1)])) == [Tagged(1)]


def test_what_a_message_raises_while_it_is_decoded_is_a_violation():
    contract = Contract(Union, encode=True)
    with pytest.raises(ContractViolation, match="negative"):
        contract.unpack(b"\x82\xa4type\xa7Checked\xa5value\xff")


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x81\xa4type\xa7Unknown", b"\x93\x01\x02\x03", b"\x82\xa4type\xa6Tagged"])
def test_damaged_bytes_are_a_violation(payload):
    with pytest.raises(ContractViolation):
        Contract(Union, encode=True).unpack(payload)


async def test_fields_are_validated_when_encoded():
    class Keep(Actor[Tagged]):
        async def receive(self, message: Tagged) -> int:
            return message.value

    async with Supervisor("s", encode=True) as supervisor:
        ref = await supervisor.start("keep", Keep, capacity=4)
        with pytest.raises(ContractViolation, match="Expected `int`"):
            await ref.ask(Tagged("seven"))  # type: ignore[arg-type]
        assert await ref.ask(Tagged(7)) == 7


async def test_encoded_messages_are_copies_and_plain_ones_are_not(encode):
    seen: list = []

    class Keep(Actor[Tagged]):
        async def receive(self, message: Tagged) -> Tagged:
            seen.append(message)
            return message

    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("keep", Keep, capacity=4)
        message = Tagged(3)
        reply = await ref.ask(message)
    assert reply == seen[0] == message
    assert (seen[0] is message) == (reply is message) == (not encode)


class Name(Struct, frozen=True, tag=True):
    kind: str


async def test_replies_follow_the_return_annotation(encode):
    class Liar(Actor[Tagged | Name]):
        async def receive(self, message: Tagged | Name) -> Tagged | None:
            replies: dict[str, Any] = {"none": None, "wrong": Checked(1), "odd": object()}
            return message if isinstance(message, Tagged) else replies[message.kind]

    async with Supervisor("s", encode=encode) as supervisor:
        ref = await supervisor.start("liar", Liar, capacity=4)
        assert await ref.ask(Tagged(4)) == Tagged(4)
        assert await ref.ask(Name("none")) is None
        for kind in ("wrong", "odd"):
            with pytest.raises(ContractViolation, match="reply"):
                await ref.ask(Name(kind))
            await ref.send(Name(kind))
        assert await ref.ask(Tagged(5)) == Tagged(5)
    assert supervisor.num_restarts == 0
