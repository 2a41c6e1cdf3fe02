"""Objects that commands read from the user's Python files."""

from __future__ import annotations

from typing import TypeVar

from flywheel.definitions import load_module

Found = TypeVar("Found")


def only_object(path: str, kinds: tuple[type[Found], ...]) -> Found:
    """The only object of these classes that a Python file defines. Raises ValueError."""
    made = [one for one in vars(load_module(path)).values() if isinstance(one, kinds)]
    if len(made) != 1:
        names = " or ".join(f"fw.{kind.__name__}" for kind in kinds)
        raise ValueError(f"{path} has {len(made)} objects of {names}; exactly one is needed.")
    return made[0]
