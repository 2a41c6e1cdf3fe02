-- Predictions are stored in packs: at most 512 rows of one variant and partition that arrived in one transaction and
-- lie in one slice of event time. Columns have the values of the rows one behind the other, numbers big-endian; texts
-- are joined by NUL, or empty where all of them are (flywheel_monitor.store.postgres.packs).
CREATE TABLE prediction_pack (
    id           bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     integer     NOT NULL,
    variant_id   integer     NOT NULL,
    shadow       boolean     NOT NULL,
    partition    smallint    NOT NULL,
    rows         integer     NOT NULL,
    arrived_at   timestamptz NOT NULL DEFAULT now(),
    first_us     bigint      NOT NULL,
    last_us      bigint      NOT NULL,
    -- The newest three event times, which decide what is supported (flywheel_monitor.windows.support).
    newest_us    bigint[]    NOT NULL,
    buckets      bigint[]    NOT NULL,
    ids          bytea       NOT NULL,
    event_times  bytea       NOT NULL,
    scores       bytea       NOT NULL,
    -- 1: decision, 2: failed, 4 × source.
    flags        bytea       NOT NULL,
    latencies_ms bytea       NOT NULL,
    costs        bytea       NOT NULL,
    segments     bytea       NOT NULL,
    subjects     bytea       NOT NULL,
    outputs      bytea       NOT NULL
);
-- Compressing them costs more than writing them.
ALTER TABLE prediction_pack ALTER COLUMN ids SET STORAGE EXTERNAL, ALTER COLUMN event_times SET STORAGE EXTERNAL,
    ALTER COLUMN scores SET STORAGE EXTERNAL, ALTER COLUMN flags SET STORAGE EXTERNAL,
    ALTER COLUMN latencies_ms SET STORAGE EXTERNAL, ALTER COLUMN costs SET STORAGE EXTERNAL,
    ALTER COLUMN segments SET STORAGE EXTERNAL, ALTER COLUMN subjects SET STORAGE EXTERNAL,
    ALTER COLUMN outputs SET STORAGE EXTERNAL, ALTER COLUMN buckets SET STORAGE EXTERNAL;

-- The packs in which the ids of a bucket are (flywheel_monitor.store.postgres.id_buckets). For `partitions` of the
-- topic, all ids of the pack are in the partition of their hash; 0: some are not, or it is not known.
CREATE TABLE prediction_bucket (
    model_id   integer  NOT NULL,
    partition  smallint NOT NULL,
    partitions smallint NOT NULL,
    bucket     bigint   NOT NULL,
    pack       bigint   NOT NULL,
    PRIMARY KEY (model_id, bucket, pack)
);

CREATE FUNCTION pg_temp.bucket_of(id text) RETURNS bigint LANGUAGE sql AS $$
    SELECT CASE
        WHEN id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}' AND length(id) = 36 AND octet_length(id) = 36
            THEN ('x' || substr(id, 1, 8) || substr(id, 10, 4))::bit(48)::bigint >> 9
        WHEN id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}' AND length(id) = 36 AND octet_length(id) = 36
            THEN ('x' || substr(id, 1, 8) || substr(id, 10, 4) || substr(id, 15, 4))::bit(64)::bigint
        ELSE ('x' || encode(substr(sha256(convert_to(id, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
    END
$$;

-- The transactions of stored rows are not known: what arrived in one minute is packed together, in slices of a second,
-- which fit panes of any width. Rows are sorted, so that one pack at a time is in memory.
INSERT INTO prediction_pack (model_id, variant_id, shadow, partition, rows, arrived_at, first_us, last_us, newest_us,
    buckets, ids, event_times, scores, flags, latencies_ms, costs, segments, subjects, outputs)
SELECT model_id, variant_id, shadow_variant <> 0, partition, count(*), max(arrived_at), min(event_time),
    max(event_time), (array_agg(event_time ORDER BY event_time DESC))[1:3],
    array_agg(DISTINCT pg_temp.bucket_of(prediction_id)),
    string_agg(convert_to(prediction_id, 'UTF8'), '\x00' ORDER BY place),
    string_agg(int8send(event_time), '' ORDER BY place),
    string_agg(float8send(score), '' ORDER BY place),
    string_agg(substr(int4send(decision::integer + 2 * failed::integer + 4 * source), 4), '' ORDER BY place),
    string_agg(float4send(latency_ms), '' ORDER BY place),
    CASE WHEN count(cost) = 0 THEN '' ELSE string_agg(float4send(coalesce(cost, 'NaN')), '' ORDER BY place) END,
    CASE WHEN max(segment) = '' THEN '' ELSE string_agg(convert_to(segment, 'UTF8'), '\x00' ORDER BY place) END,
    CASE WHEN max(subject) = '' THEN '' ELSE string_agg(convert_to(subject, 'UTF8'), '\x00' ORDER BY place) END,
    -- They were little-endian.
    coalesce(string_agg((
        SELECT string_agg(substr(outputs, 8 * k + 8 - b, 1), '' ORDER BY k, b)
        FROM generate_series(0, length(outputs) / 8 - 1) AS k, generate_series(0, 7) AS b
    ), '' ORDER BY place), '')
FROM (
    SELECT *, (row_number() OVER w - 1) / 512 AS piece, row_number() OVER w AS place FROM prediction
    WINDOW w AS (PARTITION BY model_id, variant_id, shadow_variant, partition, date_trunc('minute', arrived_at),
        floor(event_time / 1000000.0), outputs IS NULL ORDER BY event_time, prediction_id)
) numbered
GROUP BY model_id, variant_id, shadow_variant, partition, date_trunc('minute', arrived_at),
    floor(event_time / 1000000.0), outputs IS NULL, piece;
INSERT INTO prediction_bucket (model_id, partition, partitions, bucket, pack)
SELECT model_id, partition, 0, unnest(buckets), id FROM prediction_pack;

CREATE INDEX prediction_pack_time ON prediction_pack (variant_id, last_us);
CREATE INDEX prediction_pack_arrived ON prediction_pack USING brin (arrived_at);
DROP TABLE prediction;
DROP FUNCTION pg_temp.bucket_of;
