"""The one hook through which metrics, logs and traces see actors. Knows no actor."""


class Observer:
    """Override what you want to see; every method does nothing by default and must not raise or block."""

    def handled(self, name: str, message_type: type, seconds: float) -> None:
        """`receive` of actor `name` returned."""

    def failed(self, name: str, error: BaseException) -> None:
        """A message was rejected, broke the contract, or crashed the incarnation."""

    def expired(self, name: str) -> None:
        """A message's deadline had passed, or its asker had left, before it was handled."""

    def restarted(self, name: str, error: BaseException) -> None:
        """A new incarnation took over after `error`."""

    def stopped(self, name: str, error: BaseException | None) -> None:
        """An incarnation ended; `error` is None after a normal stop."""
