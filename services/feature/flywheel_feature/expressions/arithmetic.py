"""Sums, differences, products and quotients of FLOAT64 columns, computed on arrays as they are.

Most on-demand features are no more than that, and for the few rows of a request the way into a frame and out of it takes ten times as
long as the numbers. These operations are exact to the last bit by IEEE 754, so it does not matter who computes them: the result is that
of `expressions`, which every text must compile with, too. Left to it is what Polars takes short cuts for: division by a number is
multiplication with the inverse, and adding 0 keeps the sign of -0.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel_common.arrays import Array, Mask

Node = str | float | tuple[Any, ...]
"""A column, a number, or (function, operands)."""

_TEXT = re.compile(r"(?:\s|[A-Za-z_]\w*|\d{1,15}(?:\.\d{1,15})?(?![\w.])|[-+*/()])*", re.ASCII)
_OPERATORS: Mapping[type[ast.operator], np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
}


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A compiled text; see `arithmetic`."""

    columns: tuple[str, ...]
    """Which it reads, each once."""
    _root: Node

    def compute(self, columns: Mapping[str, tuple[Array, Mask]]) -> tuple[Array, Mask]:
        """[n] values (0 where there is none) and the mask of those present: null in, null out; what is no number is null."""
        with np.errstate(all="ignore"):
            found: Array = _value(self._root, columns)
        there = ~np.isnan(found)
        for name in self.columns:
            there &= columns[name][1]
        return (found if there.all() else np.where(there, found, 0.0)), there


def arithmetic(sql: str, columns: Collection[str]) -> Arithmetic | None:
    """None for a text that is anything else than + - * / over `columns` and numbers. SQL and Python read such a text alike."""
    if not _TEXT.fullmatch(sql) or "**" in sql or "//" in sql or "--" in sql:
        return None
    try:
        root = _node(ast.parse(sql.strip(), mode="eval").body, columns)
    except (SyntaxError, RecursionError, _OtherText):
        return None
    read = tuple(dict.fromkeys(_columns(root)))
    return Arithmetic(read, root) if read and not isinstance(root, str) else None


class _OtherText(Exception):
    """Not plain arithmetic."""


def _node(tree: ast.expr, columns: Collection[str]) -> Node:
    match tree:
        case ast.Name(id=name) if name in columns:
            return name
        case ast.Constant(value=int() | float() as value) if value and not isinstance(value, bool):
            return float(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return np.negative, _computed(_node(operand, columns))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _node(left, columns), _node(right, columns)
            if isinstance(b, float):
                # Of two numbers SQL makes a whole one where it can.
                _computed(a)
                if isinstance(op, ast.Div):
                    raise _OtherText
            return _OPERATORS[type(op)], a, b
    raise _OtherText


def _computed(node: Node) -> Node:
    if isinstance(node, float):
        raise _OtherText
    return node


def _value(node: Node, columns: Mapping[str, tuple[Array, Mask]]) -> Any:
    if isinstance(node, str):
        return columns[node][0]
    if isinstance(node, float):
        return node
    return node[0](*[_value(operand, columns) for operand in node[1:]])


def _columns(node: Node) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, tuple):
        for operand in node[1:]:
            yield from _columns(operand)
