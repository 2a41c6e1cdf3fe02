"""Arguments of commands that name a version of a model."""

from __future__ import annotations

from typing import Annotated

import typer

Version = Annotated[
    str, typer.Argument(help="`model/3`, `model@alias`, or the full name of a version or an alias")
]
ModelOrVersion = Annotated[str, typer.Argument(help="A model, or a version: `late/3`, `late@champion`")]
