"""Which prompts begin alike. They are matched by key ids under a namespace, never by the model's ids.

A key id stands for one token. It is the token's id, unless the same id can mean different contents (an image's place, a
token under an adapter). Namespaces keep tenants apart: who shares could tell by the time what others have asked.
"""

from typing import NamedTuple

ID_BYTES = 4


class PrefixKey(NamedTuple):
    """A prompt as int32 bytes, one key id a token, in its namespace."""

    namespace: str
    ids: bytes

    def common_len(self, other: "PrefixKey") -> int:
        """Tokens that both begin with."""
        if self.namespace != other.namespace:
            return 0
        mine, theirs = self.ids, other.ids
        same, end = 0, min(len(mine), len(theirs)) // ID_BYTES
        if mine[: end * ID_BYTES] == theirs[: end * ID_BYTES]:
            return end
        while end - same > 1:  # they agree up to `same` and not up to `end`
            middle = (same + end) // 2
            is_same = mine[same * ID_BYTES : middle * ID_BYTES] == theirs[same * ID_BYTES : middle * ID_BYTES]
            same, end = (middle, end) if is_same else (same, middle)
        return same
