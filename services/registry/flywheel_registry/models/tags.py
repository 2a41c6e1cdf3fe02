"""Changes the tags of a version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_registry.audit.journal import Journal
from flywheel_registry.models.errors import InvalidTags
from flywheel_registry.models.lookups import find_version, lock_model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.version import ModelVersion

MAX_TAGS, MAX_KEY, MAX_VALUE = 100, 128, 1024


class VersionTags:
    """Changes the tags of versions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    async def change(
        self,
        records: ModelRecords,
        name: VersionName,
        added: Mapping[str, str],
        removed: Iterable[str],
        by: str,
    ) -> ModelVersion:
        """Add or replace `added`, remove the keys `removed`, and return the version.

        Raises UnknownModel, UnknownModelVersion, InvalidTags.
        """
        await lock_model(records, name.parent)
        version = await find_version(records, name)
        gone = set(removed) - added.keys()
        tags = {**{k: v for k, v in version.tags.items() if k not in gone}, **added}
        check_tags(tags)
        if tags != version.tags:
            await records.change_tags(version, tags)
            changes = [f"{key}={value}" for key, value in sorted(added.items())]
            changes += [f"-{key}" for key in sorted(gone & version.tags.keys())]
            await Journal(records, name.parent, self._clock.now(), by).write(
                "TAG", version.name, reason=", ".join(changes)
            )
        return replace(version, tags=tags)


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise InvalidTags unless number, keys and values are within their limits."""
    if len(tags) > MAX_TAGS:
        raise InvalidTags(f"A version has at most {MAX_TAGS} tags, not {len(tags)}.")
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_KEY or len(value) > MAX_VALUE:
            raise InvalidTags(
                f"Tag {key[:40]!r}: a key has 1 to {MAX_KEY} and a value at most {MAX_VALUE} characters."
            )
