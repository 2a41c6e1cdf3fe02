"""Combines the stores that know the history of stream sources: event archive, topics and push logs."""

from __future__ import annotations

from flywheel_feature.ingest.push_log import PushLog
from flywheel_feature.store.kafka.source_topics import SourceTopics
from flywheel_feature.store.postgres.archive import PostgresArchive


class EventHistory:
    """The archived events, the ends of their topics, and pushed rows (port: tables.ports.Archive)."""

    def __init__(self, archive: PostgresArchive, topics: SourceTopics, push_log: PushLog) -> None:
        self.segments = archive.segments
        self.archived_offsets = archive.archived_offsets
        self.end_offsets = topics.end_offsets
        self.pushed_uris = push_log.pushed_uris
