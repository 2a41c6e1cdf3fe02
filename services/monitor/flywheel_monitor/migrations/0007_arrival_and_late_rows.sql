-- Retention goes by arrival: no event time of a sender can make other rows old.
ALTER TABLE prediction ADD COLUMN arrived_at timestamptz NOT NULL DEFAULT now();
CREATE INDEX prediction_arrived ON prediction USING brin (arrived_at);

-- Predictions that arrived after their window was judged, by pane. pending: the window has to be judged again.
CREATE TABLE late_pane (
    model_version_id integer NOT NULL REFERENCES model_version,
    start_us         bigint  NOT NULL,
    partition        smallint NOT NULL,
    predictions      bigint  NOT NULL,
    pending          boolean NOT NULL DEFAULT true,
    PRIMARY KEY (model_version_id, start_us, partition)
);
CREATE INDEX late_pane_pending ON late_pane (model_version_id, start_us) WHERE pending;
-- Those that came when no more judgement of their window was due.
ALTER TABLE ingest_count ADD COLUMN late bigint NOT NULL DEFAULT 0;
