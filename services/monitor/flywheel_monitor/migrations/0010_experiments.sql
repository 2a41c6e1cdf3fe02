-- An experiment with its sums (flywheel_monitor.experiments.tally). state: 1 running, 2 concluded.
CREATE TABLE experiment (
    id           integer     GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id     integer     NOT NULL REFERENCES model,
    name         text        NOT NULL UNIQUE,
    declaration  jsonb       NOT NULL,
    tally        jsonb       NOT NULL,
    state        smallint    NOT NULL DEFAULT 1,
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text        NOT NULL,
    concluded_at timestamptz,
    concluded_by text        NOT NULL DEFAULT '',
    verdict      smallint    NOT NULL DEFAULT 0,
    reason       text        NOT NULL DEFAULT ''
);
CREATE INDEX experiment_model ON experiment (model_id, id);

-- What a running experiment knows of a subject: its arm (2: both) and its amounts, as JSON integers of any size.
CREATE TABLE experiment_subject (
    experiment_id integer  NOT NULL REFERENCES experiment,
    subject       text     NOT NULL,
    arm           smallint NOT NULL,
    amounts       jsonb    NOT NULL,
    PRIMARY KEY (experiment_id, subject)
);

-- Predictions of models with a running experiment, and their outcomes, that wait to be counted in it.
CREATE TABLE experiment_event (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model_id   integer     NOT NULL REFERENCES model,
    variant_id integer     NOT NULL REFERENCES variant,
    subject    text        NOT NULL,
    event_time bigint      NOT NULL,
    arrived_at timestamptz NOT NULL,
    name       text        NOT NULL,
    value      double precision NOT NULL,
    latency_ms real        NOT NULL,
    failed     boolean     NOT NULL,
    cost       real
);
