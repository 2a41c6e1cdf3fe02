-- Event times are bigint microseconds since 1970 (UTC) throughout; timestamptz columns are wall time.

CREATE TABLE model (
    id         integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text        NOT NULL UNIQUE,
    project    text        NOT NULL,
    policy     jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A version seen in the stream, with what it is compared with. The reference never changes once stored: the panes are
-- counted in its bins.
CREATE TABLE model_version (
    id               integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id         integer     NOT NULL REFERENCES model,
    name             text        NOT NULL UNIQUE,
    reference_hash   text        NOT NULL DEFAULT '',
    reference        jsonb       NOT NULL DEFAULT '[]',
    reference_reason text        NOT NULL DEFAULT '',
    metrics          jsonb       NOT NULL DEFAULT '{}',
    -- Moments and histogram of the first window served.
    score_reference  jsonb,
    -- Windows that end at or before these were evaluated.
    closed_until     bigint      NOT NULL DEFAULT 0,
    labelled_until   bigint      NOT NULL DEFAULT 0,
    created_at       timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX model_version_model ON model_version (model_id);

-- Who answered: everything that the rows of a prediction batch share.
CREATE TABLE variant (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_version_id integer NOT NULL REFERENCES model_version,
    release          text    NOT NULL,
    rollout          text    NOT NULL,
    role             smallint NOT NULL,
    last_event       bigint  NOT NULL DEFAULT 0,
    UNIQUE (model_version_id, release, rollout, role)
);
CREATE INDEX variant_rollout ON variant (rollout);

-- One row per answer: labels find their window here, variants are compared here, repeats are known here.
-- A shadow answer carries the id of the champion's answer, hence the second part of the key.
CREATE TABLE prediction (
    prediction_id text     NOT NULL,
    shadow        boolean  NOT NULL,
    decision      boolean  NOT NULL,
    failed        boolean  NOT NULL,
    source        smallint NOT NULL,
    partition     smallint NOT NULL,
    variant_id    integer  NOT NULL,
    latency_ms    real     NOT NULL,
    event_time    bigint   NOT NULL,
    score         double precision NOT NULL,
    segment       text     NOT NULL DEFAULT '',
    PRIMARY KEY (prediction_id, shadow)
);
CREATE INDEX prediction_variant_time ON prediction (variant_id, event_time);

-- The label of a prediction, which may arrive before it. The newest (event_time, outcome_id) wins, so that repeats and
-- any order of arrival end in the same label.
CREATE TABLE label (
    prediction_id text     PRIMARY KEY,
    partition     smallint NOT NULL,
    value         double precision NOT NULL,
    event_time    bigint   NOT NULL,
    outcome_id    text     NOT NULL
);

-- Business outcomes (every name but `label`).
CREATE TABLE outcome (
    outcome_id    text     PRIMARY KEY,
    model_id      integer  NOT NULL REFERENCES model,
    prediction_id text     NOT NULL,
    name          text     NOT NULL,
    value         double precision NOT NULL,
    event_time    bigint   NOT NULL
);
CREATE INDEX outcome_prediction ON outcome (prediction_id);

-- Additive counts per pane of event time (flywheel_monitor.windows.layout, .panes). Kept per partition, so that one consumer
-- alone writes a row.
CREATE TABLE pane (
    model_version_id integer  NOT NULL REFERENCES model_version,
    shadow           boolean  NOT NULL,
    segment          text     NOT NULL,
    start_us         bigint   NOT NULL,
    partition        smallint NOT NULL,
    predictions      bigint   NOT NULL,
    counts           bytea    NOT NULL,
    sums             bytea    NOT NULL,
    PRIMARY KEY (model_version_id, shadow, segment, start_us, partition)
) WITH (fillfactor = 80);

-- Newest event time per partition: the watermark.
CREATE TABLE progress (
    model_id  integer  NOT NULL REFERENCES model,
    partition smallint NOT NULL,
    newest_us bigint   NOT NULL,
    PRIMARY KEY (model_id, partition)
);

CREATE TABLE ingest_count (
    model_id    integer  NOT NULL REFERENCES model,
    partition   smallint NOT NULL,
    predictions bigint   NOT NULL DEFAULT 0,
    outcomes    bigint   NOT NULL DEFAULT 0,
    orphans     bigint   NOT NULL DEFAULT 0,
    duplicates  bigint   NOT NULL DEFAULT 0,
    PRIMARY KEY (model_id, partition)
);

-- The evaluation of a window; revised when late events or labels changed it.
CREATE TABLE window_report (
    model_version_id integer NOT NULL REFERENCES model_version,
    start_us         bigint  NOT NULL,
    end_us           bigint  NOT NULL,
    predictions      bigint  NOT NULL,
    labelled         bigint  NOT NULL,
    report           jsonb   NOT NULL,
    revision         integer NOT NULL DEFAULT 1,
    evaluated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model_version_id, end_us, start_us)
);

CREATE TABLE window_verdict (
    model_version_id integer  NOT NULL REFERENCES model_version,
    kind             text     NOT NULL,
    start_us         bigint   NOT NULL,
    end_us           bigint   NOT NULL,
    verdict          smallint NOT NULL,
    reason           text     NOT NULL,
    PRIMARY KEY (model_version_id, kind, end_us, start_us)
);

CREATE TABLE alert (
    serial           bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id               text     NOT NULL UNIQUE,
    project          text     NOT NULL,
    model            text     NOT NULL,
    model_version_id integer  NOT NULL REFERENCES model_version,
    kind             text     NOT NULL,
    state            smallint NOT NULL,
    window_start_us  bigint   NOT NULL,
    window_end_us    bigint   NOT NULL,
    last_window_end_us bigint NOT NULL,
    features         jsonb    NOT NULL,
    reason           text     NOT NULL,
    opened_at        timestamptz NOT NULL,
    resolved_at      timestamptz,
    acknowledged_by  text     NOT NULL DEFAULT '',
    resolved_reason  text     NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX alert_unresolved ON alert (model_version_id, kind) WHERE state <> 3;
CREATE INDEX alert_project ON alert (project, serial DESC);

-- drift.detected events that left: one per (version, kind, reference, window).
CREATE TABLE announcement (
    model_version_id integer NOT NULL REFERENCES model_version,
    kind             text    NOT NULL,
    reference_hash   text    NOT NULL,
    start_us         bigint  NOT NULL,
    end_us           bigint  NOT NULL,
    PRIMARY KEY (model_version_id, kind, reference_hash, end_us, start_us)
);

-- A segment is fixed (its queue rows named) before its objects are written under names made of its id, and completed
-- after: a crash in between repeats the same bytes under the same names.
CREATE TABLE archive_segment (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id   integer     NOT NULL REFERENCES model,
    complete   boolean     NOT NULL DEFAULT false,
    rows       bigint      NOT NULL,
    objects    jsonb       NOT NULL DEFAULT '[]',
    last_event bigint      NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX archive_segment_model ON archive_segment (model_id);
CREATE INDEX archive_segment_pending ON archive_segment (id) WHERE NOT complete;

-- Prediction batches on their way to the archive: `kept` is a bitmap of the rows that were new (empty: all).
CREATE TABLE archive_queue (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id    integer     NOT NULL REFERENCES model,
    segment_id  bigint      REFERENCES archive_segment,
    rows        integer     NOT NULL,
    kept        bytea       NOT NULL,
    payload     bytea       NOT NULL,
    enqueued_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX archive_queue_segment ON archive_queue (segment_id, id);
