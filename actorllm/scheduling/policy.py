"""In which order requests run.

A policy is a function from a request to its rank: the lowest rank is admitted first and paused last. It sees a
request only, never memory or the device.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from actorllm.scheduling.request import Request


class Policy(Protocol):
    """Ranks are compared with `<` only and must not change while the request lives."""

    def __call__(self, request: Request) -> Any: ...


def fcfs(request: Request) -> int:
    """First come, first served."""
    return request.number


POLICIES: Mapping[str, Policy] = MappingProxyType({"fcfs": fcfs})
