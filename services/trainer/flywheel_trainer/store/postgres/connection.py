"""What every connection of this service's pool speaks: jsonb columns are Python values."""

from __future__ import annotations

import json
from typing import Any


async def prepare(connection: Any) -> None:
    """To be given to `create_pool(init=…)`."""
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
