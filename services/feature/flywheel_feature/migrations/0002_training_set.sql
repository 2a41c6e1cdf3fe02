-- A training set exists when its row exists; its files are written first. Rows never change.
CREATE TABLE training_set (
    project      text        NOT NULL,
    id           text        NOT NULL,
    feature_set  text        NOT NULL,
    body         jsonb       NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (project, id)
);
CREATE INDEX training_set_newest ON training_set (project, created_at DESC, id DESC);
