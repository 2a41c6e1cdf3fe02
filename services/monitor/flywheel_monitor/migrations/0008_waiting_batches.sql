-- Prediction batches of versions whose reference cannot be fetched yet: other versions do not wait for them.
CREATE TABLE waiting_batch (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model         text        NOT NULL,
    model_version text        NOT NULL,
    partition     smallint    NOT NULL,
    rows          integer     NOT NULL,
    output        jsonb       NOT NULL,
    payload       bytea       NOT NULL,
    arrived_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX waiting_batch_version ON waiting_batch (model_version, partition, id);
