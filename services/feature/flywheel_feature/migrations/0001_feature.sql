-- Definitions. Entities and sources have version 0; views and feature sets have versions 1, 2, …
CREATE TABLE definition (
    project     text        NOT NULL,
    kind        text        NOT NULL CHECK (kind IN ('entity', 'source', 'view', 'feature_set')),
    id          text        NOT NULL,
    version     integer     NOT NULL,
    body        jsonb       NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    deleted_at  timestamptz,
    PRIMARY KEY (project, kind, id, version)
);

-- One row per project. Applies lock it, so that they run one after the other; caches compare its revision.
CREATE TABLE catalog_revision (
    project   text   PRIMARY KEY,
    revision  bigint NOT NULL
);

CREATE TABLE job (
    project          text        NOT NULL,
    id               text        NOT NULL,
    kind             text        NOT NULL,
    request          bytea       NOT NULL,
    request_id       text        NOT NULL DEFAULT '',
    request_hash     bytea       NOT NULL,
    state            text        NOT NULL DEFAULT 'QUEUED',
    done             bigint      NOT NULL DEFAULT 0,
    total            bigint      NOT NULL DEFAULT 0,
    unit             text        NOT NULL DEFAULT '',
    message          text        NOT NULL DEFAULT '',
    created_at       timestamptz NOT NULL,
    ended_at         timestamptz,
    error_reason     text        NOT NULL DEFAULT '',
    error_message    text        NOT NULL DEFAULT '',
    training_set     text        NOT NULL DEFAULT '',
    result           jsonb       NOT NULL DEFAULT '{}',
    checkpoint       bytea       NOT NULL DEFAULT '',
    attempt          integer     NOT NULL DEFAULT 0,
    cancel_requested boolean     NOT NULL DEFAULT false,
    owner            text,
    lease_until      timestamptz,
    due_at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, id)
);
CREATE UNIQUE INDEX job_request ON job (project, kind, request_id) WHERE request_id <> '';
CREATE INDEX job_open ON job (due_at) WHERE state IN ('QUEUED', 'RUNNING');

-- The events of stream sources by a hash of their id, with the place where each was seen first.
-- The same id at another place is a duplicate.
CREATE TABLE seen_event (
    source     text    NOT NULL,
    id_hash    bigint  NOT NULL,
    partition  integer NOT NULL,
    "offset"   bigint  NOT NULL,
    position   integer NOT NULL,
    PRIMARY KEY (source, id_hash)
);

-- The archive of stream sources on S3. A segment contains each event from first_offset to next_offset - 1
-- of a partition once. A file that is not in this table is not a segment. Times are microseconds.
CREATE TABLE archive_segment (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project     text        NOT NULL,
    source      text        NOT NULL,
    key         text        NOT NULL UNIQUE,
    event_count bigint      NOT NULL,
    min_time    bigint      NOT NULL,
    max_time    bigint      NOT NULL,
    partition    integer    NOT NULL,
    first_offset bigint     NOT NULL,
    next_offset  bigint     NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    UNIQUE (project, source, partition, first_offset)
);

CREATE TABLE archive_position (
    project     text    NOT NULL,
    source      text    NOT NULL,
    partition   integer NOT NULL,
    next_offset bigint  NOT NULL,
    event_count bigint  NOT NULL DEFAULT 0,
    PRIMARY KEY (project, source, partition)
);

-- The event time up to which a batch view was materialized, where the next incremental run begins.
CREATE TABLE materialized (
    project   text    NOT NULL,
    view      text    NOT NULL,
    version   integer NOT NULL,
    end_time  bigint  NOT NULL,
    newest    bigint  NOT NULL,
    PRIMARY KEY (project, view, version)
);
