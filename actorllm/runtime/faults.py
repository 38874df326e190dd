"""What can go wrong between actors, as one tree.

    ActorFault
    ├── ActorCrashed        the receive that handled the message ended in an error; asking again may help
    ├── ActorStopped        the actor has ended for good, or ends now; asking again never helps
    ├── ContractViolation   the message (or the reply) is not of the type that `receive` is annotated with
    ├── MailboxClosed       the mailbox takes nothing more, and nothing is left to be taken
    └── RestartsExhausted   an actor crashed beyond its budget, or with a fatal error; leaves the supervisor's block

This file knows nothing of LLMs, of HTTP, or of the errors that a user of the server meets.
"""


class ActorFault(Exception):
    """The root."""


class ActorCrashed(ActorFault):
    """The actor `name` crashed with `error` (also the `__cause__`) while it held the message."""

    def __init__(self, name: str, error: BaseException) -> None:
        super().__init__(f"actor {name!r} crashed: {type(error).__name__}: {error}")
        self.name = name
        self.error = error
        self.__cause__ = error


class ActorStopped(ActorFault):
    """The actor `name` has ended for good; the message was not handled, or not to its end."""

    def __init__(self, name: str) -> None:
        super().__init__(f"actor {name!r} has stopped")
        self.name = name


class ContractViolation(ActorFault):
    """A message or a reply does not fit the annotations of the actor's `receive`."""


class MailboxClosed(ActorFault):
    """Puts fail at once; gets fail when the mailbox is empty."""


class RestartsExhausted(ActorFault):
    """The actor `name` of `supervisor` is not restarted any more: its budget is used up, or `error` is fatal.

    `error` (also the `__cause__`) is the last crash.
    """

    def __init__(self, name: str, supervisor: str, error: BaseException) -> None:
        super().__init__(f"actor {name!r} of {supervisor!r} is not restarted any more: {type(error).__name__}: {error}")
        self.name = name
        self.supervisor = supervisor
        self.error = error
        self.__cause__ = error
