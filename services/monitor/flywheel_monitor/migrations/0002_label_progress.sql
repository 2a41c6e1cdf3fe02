-- Newest time at which an outcome became known, per partition: windows are not judged on labels while outcomes wait unread.
CREATE TABLE label_progress (
    model_id  integer  NOT NULL REFERENCES model,
    partition smallint NOT NULL,
    newest_us bigint   NOT NULL,
    PRIMARY KEY (model_id, partition)
);
