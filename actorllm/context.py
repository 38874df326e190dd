"""How many tokens a sequence may have, and what is said to who asks for more.

Knows no request and no tokenizer.
"""

from dataclasses import dataclass

from actorllm.errors import PromptTooLong


@dataclass(frozen=True)
class TokenLimit:
    """At most so many tokens of a prompt, and the reason with its mend."""

    most: int
    reason: str

    def check(self, num_tokens: int, *, is_part: bool = False) -> None:
        """Raises `PromptTooLong`; `is_part`: the prompt has more tokens than were counted."""
        if num_tokens > self.most:
            count = f"more than {num_tokens}" if is_part else f"{num_tokens}"
            raise PromptTooLong(f"the prompt has {count} tokens, but {self.reason}", param="prompt")


@dataclass(frozen=True)
class Context:
    """`length` tokens are served, of the `largest` that the model was made for."""

    length: int
    largest: int

    @property
    def mend(self) -> str:
        """The last of what can be done about a context that is too short."""
        if self.length < self.largest:
            return f"or serve with a larger --context (this model goes up to {self.largest})"
        return f"or use a model with a longer context: this one was made for {self.largest}"

    @property
    def for_prompts(self) -> TokenLimit:
        """A prompt leaves room for one token."""
        return TokenLimit(
            self.length - 1,
            f"the context is {self.length} tokens and one must be left for the output: shorten the prompt to at most "
            f"{self.length - 1} tokens, {self.mend}",
        )

    def check_output(self, prompt_len: int, max_tokens: int) -> None:
        """Raises `PromptTooLong` where prompt and output do not fit together."""
        room = self.length - prompt_len
        if max_tokens > room:
            raise PromptTooLong(
                f"the prompt has {prompt_len} tokens and max_tokens is {max_tokens}, together {prompt_len + max_tokens}, but the "
                f"context is {self.length} tokens: lower max_tokens to at most {room}, leave it out to use what the context has "
                f"room for, shorten the prompt, {self.mend}",
                param="max_tokens",
            )
