"""Set-up of the pool's connections: jsonb columns are Python values."""

from __future__ import annotations

import json
from typing import Any


async def prepare(connection: Any) -> None:
    """Pass this as `init` of `create_pool`."""
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
