"""Keys of many entities whose names are texts of the same length, kept in one piece of memory.

Making each key separately creates half a dozen small objects per entity. Here the texts stay as the request
sent them, each after a two-byte mark that occurs nowhere else; replacing the mark turns all of them into keys
at once. Access to a single name or key gives the same bytes as `keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

MANY = 16
"""Number of entities from which this is faster than a list."""


class _LazyItems(Sequence[bytes]):
    """A sequence whose items are made on the first access to one."""

    def __init__(self) -> None:
        self._items: list[bytes] | None = None

    def _make_items(self) -> list[bytes]:
        raise NotImplementedError

    def _made_items(self) -> list[bytes]:
        if self._items is None:
            self._items = self._make_items()
        return self._items

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._made_items()[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._made_items())


class SameLengthTexts(_LazyItems):
    """Names of entities, equal to those of `keys.entity_keys` for one STRING join key."""

    def __init__(self, piece: bytes) -> None:
        """`piece` must be one that `of` accepts."""
        super().__init__()
        self.piece, self.mark, self.length = piece, piece[:2], piece[1]

    @classmethod
    def of(cls, piece: bytes, count: int) -> SameLengthTexts | None:
        """The names in a serialized repeated string field: `count` texts, each after its tag and length byte.

        None when the texts differ in length, or when the two bytes also occur inside a text.
        """
        mark = piece[:2]
        # If both bytes were equal, a text that ends with that byte would match one byte too early.
        if len(mark) < 2 or mark[0] == mark[1]:
            return None
        size = 2 + mark[1]
        same_length = (
            len(piece) == count * size
            and piece[::size] == mark[:1] * count
            and piece[1::size] == mark[1:] * count
            and piece.count(mark) == count
        )
        return cls(piece) if same_length else None

    def __len__(self) -> int:
        return len(self.piece) // (2 + self.length)

    def _make_items(self) -> list[bytes]:
        head = b"%d:" % self.length
        return [head + text + b"}" for text in self.piece.split(self.mark)[1:]]


class SameLengthKeys(_LazyItems):
    """The keys of such entities for several prefixes, grouped by prefix."""

    def __init__(self, groups: Sequence[tuple[bytes, SameLengthTexts]]) -> None:
        super().__init__()
        self._groups = groups

    def __len__(self) -> int:
        return sum(len(texts) for _, texts in self._groups)

    def written(self, head: Callable[[int], bytes], end: bytes) -> bytes:
        """All keys joined, each between `head(length of the key)` and `end`."""
        last = b"}" + end
        pieces: list[bytes] = []
        for prefix, texts in self._groups:
            first = b"%b%d:" % (prefix, texts.length)
            first = head(len(first) + texts.length + 1) + first
            pieces += (texts.piece.replace(texts.mark, last + first)[len(last) :], last)
        return b"".join(pieces)

    def _make_items(self) -> list[bytes]:
        return [prefix + name for prefix, texts in self._groups for name in texts]


def joined(names: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
    """The names of several requests, in the order of the requests."""
    pieces = [n.piece for n in names if isinstance(n, SameLengthTexts)]
    if len(pieces) == len(names) and len({p[:2] for p in pieces}) == 1:
        return SameLengthTexts(b"".join(pieces))
    return [name for part in names for name in part]


def keys_of(groups: Sequence[tuple[bytes, Sequence[bytes]]]) -> Sequence[bytes]:
    """Prefix + name for every name of every (prefix, names) group, in order."""
    same_length = [(prefix, names) for prefix, names in groups if isinstance(names, SameLengthTexts)]
    if same_length and len(same_length) == len(groups):
        return SameLengthKeys(same_length)
    keys: list[bytes] = []
    for prefix, names in groups:
        keys += [prefix + name for name in names]
    return keys
