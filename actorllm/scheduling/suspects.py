"""Whose fault is it that a step crashed? Nobody knows, so everybody whom it computed is suspected.

Each suspect samples a few tokens in steps of its own before it shares one again (`Planner`), which repeats the crash if it was the
one. Whoever is crashed alone a second time is guilty, so that the others live.
"""

from collections.abc import Set

from actorllm.scheduling.request import Request, RequestTable

PROOF_TOKENS = 2
"""One is sampled after a prefill, one by decoding."""
CRASHED_ALONE = "the device failed twice in steps that computed this request, at last alone; the server's log has the cause"


def guilty(blamed: Set[Request], table: RequestTable) -> list[Request]:
    """Suspect those of the crashed steps that live; returns the one to be failed, if there is one."""
    alive = [request for request in blamed if table.get(request.request_id) is request and not request.is_finished]
    found = [request for request in alive if request.num_unproved and len(blamed) == 1]
    for request in alive:
        request.num_unproved = PROOF_TOKENS
    return found
