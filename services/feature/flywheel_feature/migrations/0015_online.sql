-- Files of batch sources whose rows are online in a view version. A rewritten file has another stamp.
CREATE TABLE materialized_file (
    project  text    NOT NULL,
    view     text    NOT NULL,
    version  integer NOT NULL,
    uri      text    NOT NULL,
    stamp    text    NOT NULL,
    PRIMARY KEY (project, view, version, uri)
);

-- Rows pushed to batch views, as Parquet files on S3, in the order in which the pushes were acknowledged.
-- A file that is not in this table was not acknowledged.
CREATE TABLE pushed_segment (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project     text        NOT NULL,
    view        text        NOT NULL,
    key         text        NOT NULL UNIQUE,
    row_count   bigint      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX pushed_segment_view ON pushed_segment (project, view, id);

-- The generation of the contents of Redis, which grows each time Redis is found empty.
-- Tiles of older generations are ignored.
CREATE TABLE online_generation (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    generation bigint  NOT NULL
);
INSERT INTO online_generation (generation) VALUES (0);

-- Erased entities, by SHA-256 of their key. `barriers`: source id → partition → offset. Events of the entity
-- below that offset are ignored, and so are rows of batch sources known before erased_at (microseconds).
CREATE TABLE erased_entity (
    project    text   NOT NULL,
    entity     text   NOT NULL,
    key_hash   bytea  NOT NULL,
    erased_at  bigint NOT NULL,
    barriers   jsonb  NOT NULL,
    PRIMARY KEY (project, entity, key_hash)
);

-- Objects that nothing refers to any more and that are to be deleted.
CREATE TABLE object_garbage (
    key  text PRIMARY KEY
);
