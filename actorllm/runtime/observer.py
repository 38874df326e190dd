"""The one hook of the runtime: metrics, logs and traces hang off it.

Knows no actor. Every message that is taken out of a mailbox, or that is left in one at the end, is reported once, as
`handled`, `failed` or `expired`; a message whose asker had left before it was handled is not reported.
"""


class Observer:
    """Override what you want to see; every method does nothing by default and must not raise or block."""

    def handled(self, name: str, message_type: type, seconds: float) -> None:
        """`receive` of actor `name` returned, after `seconds`."""

    def failed(self, name: str, error: BaseException) -> None:
        """A message ended in `error` (rejected, against the contract, crashed, stopped), or a hook of the actor
        (`started`, `settled`, `stopped`) raised it."""

    def expired(self, name: str) -> None:
        """A message was dropped, because its deadline had passed before it was handled."""

    def restarted(self, name: str, error: BaseException) -> None:
        """A new incarnation takes over after `error`: the actor's own, or `ActorCrashed` naming a sibling."""

    def stopped(self, name: str, error: BaseException | None) -> None:
        """An incarnation ended; `error` is None after a normal stop."""
