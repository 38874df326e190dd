"""Reads from the steps of a run whether a greedy request was paused: its row opens again with the tokens it had."""

from collections.abc import Sequence

from actorllm.messages import Step, unpack


def lengths_when_resumed(steps: Sequence[Step], output_ids: list[int]) -> list[int]:
    """How many tokens the one greedy request of a run had, each time that it came back to a device row.

    Raises AssertionError if it came back with other tokens than it must give.
    """
    resumed = [
        list(unpack(row.output_ids)) for step in steps for row in step.opened if row.sampling.temperature == 0 and row.output_ids
    ]
    for ids in resumed:
        assert ids == output_ids[: len(ids)]
    return [len(ids) for ids in resumed]
