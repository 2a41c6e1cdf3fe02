-- Files of batch sources whose rows are online in a view version, with what tells a rewritten file from the old one.
CREATE TABLE materialized_file (
    project  text    NOT NULL,
    view     text    NOT NULL,
    version  integer NOT NULL,
    uri      text    NOT NULL,
    stamp    text    NOT NULL,
    PRIMARY KEY (project, view, version, uri)
);

-- Rows pushed to batch views, as Parquet on S3, in the order in which they were acknowledged. A file that is not in this
-- table does not exist.
CREATE TABLE pushed_segment (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project     text        NOT NULL,
    view        text        NOT NULL,
    key         text        NOT NULL UNIQUE,
    row_count   bigint      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pushed_segment_view ON pushed_segment (project, view, id);

-- The contents of Redis since it was last found empty: tiles of an older generation count for nothing.
CREATE TABLE online_generation (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint  NOT NULL
);
INSERT INTO online_generation (generation) VALUES (0);

-- Entities that were erased, by SHA-256 of their key. `barriers`: source id → partition → offset below which the
-- entity's events are passed over for ever. Rows of a batch source known before erased_at (microseconds) are passed over too.
CREATE TABLE erased_entity (
    project    text   NOT NULL,
    entity     text   NOT NULL,
    key_hash   bytea  NOT NULL,
    erased_at  bigint NOT NULL,
    barriers   jsonb  NOT NULL,
    PRIMARY KEY (project, entity, key_hash)
);

-- Objects that nothing refers to any more and that must go.
CREATE TABLE object_garbage (
    key  text PRIMARY KEY
);
