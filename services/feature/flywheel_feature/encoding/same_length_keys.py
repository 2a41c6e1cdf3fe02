"""Keys of many entities that are named by texts of one length (ids usually are), kept and written as one piece of memory.

A key of its own costs half a dozen small objects on its way from a request into a command. Here the texts stay as they were sent, each
behind a mark that is found nowhere else, and one replacement of the mark makes all of them keys. Whoever looks at a single name or
key gets it as `keys` would have made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

MANY = 16
"""Entities for which one piece is cheaper than a list."""


class _Spelled(Sequence[bytes]):
    """Spelled out when somebody looks at an item."""

    def __init__(self) -> None:
        self._items: list[bytes] | None = None

    def _spell(self) -> list[bytes]:
        raise NotImplementedError

    def _spelled(self) -> list[bytes]:
        if self._items is None:
            self._items = self._spell()
        return self._items

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        return self._spelled()[index]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._spelled())


class EqualTexts(_Spelled):
    """Names of entities, as `entity_keys` gives them for one text each."""

    def __init__(self, piece: bytes) -> None:
        """Texts as `of` has found them to be."""
        super().__init__()
        self.piece, self.mark, self.length = piece, piece[:2], piece[1]

    @classmethod
    def of(cls, piece: bytes, count: int) -> EqualTexts | None:
        """`count` texts, each behind two bytes of which the second is its length, as protobuf writes a repeated text. None when they have
        several lengths, or when the two bytes are found inside a text too."""
        mark = piece[:2]
        # Two equal bytes would be found one place too early behind a text that ends with one of them.
        if len(mark) < 2 or mark[0] == mark[1]:
            return None
        size = 2 + mark[1]
        marked = (
            len(piece) == count * size
            and piece[::size] == mark[:1] * count
            and piece[1::size] == mark[1:] * count
            and piece.count(mark) == count
        )
        return cls(piece) if marked else None

    def __len__(self) -> int:
        return len(self.piece) // (2 + self.length)

    def _spell(self) -> list[bytes]:
        head = b"%d:" % self.length
        return [head + text + b"}" for text in self.piece.split(self.mark)[1:]]


class EqualKeys(_Spelled):
    """Keys of such entities, prefix by prefix."""

    def __init__(self, groups: Sequence[tuple[bytes, EqualTexts]]) -> None:
        super().__init__()
        self._groups = groups

    def __len__(self) -> int:
        return sum(len(texts) for _, texts in self._groups)

    def written(self, head: Callable[[int], bytes], end: bytes) -> bytes:
        """All keys, each between a head that tells its length and an end."""
        last = b"}" + end
        pieces: list[bytes] = []
        for prefix, texts in self._groups:
            first = b"%b%d:" % (prefix, texts.length)
            first = head(len(first) + texts.length + 1) + first
            pieces += (texts.piece.replace(texts.mark, last + first)[len(last) :], last)
        return b"".join(pieces)

    def _spell(self) -> list[bytes]:
        return [prefix + name for prefix, texts in self._groups for name in texts]


def joined(names: Sequence[Sequence[bytes]]) -> Sequence[bytes]:
    """Names of several requests, one request after the other."""
    pieces = [n.piece for n in names if isinstance(n, EqualTexts)]
    if len(pieces) == len(names) and len({p[:2] for p in pieces}) == 1:
        return EqualTexts(b"".join(pieces))
    return [name for part in names for name in part]


def keys_of(groups: Sequence[tuple[bytes, Sequence[bytes]]]) -> Sequence[bytes]:
    """Prefix and name for every name, prefix by prefix."""
    equal = [(prefix, names) for prefix, names in groups if isinstance(names, EqualTexts)]
    if equal and len(equal) == len(groups):
        return EqualKeys(equal)
    keys: list[bytes] = []
    for prefix, names in groups:
        keys += [prefix + name for name in names]
    return keys
