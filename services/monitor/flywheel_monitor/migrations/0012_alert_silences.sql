-- Alerts of which no change is sent to sinks before `until`; kind '' is all kinds.
CREATE TABLE alert_silence (
    project    text        NOT NULL,
    model      text        NOT NULL,
    kind       text        NOT NULL,
    until      timestamptz NOT NULL,
    reason     text        NOT NULL,
    created_by text        NOT NULL,
    PRIMARY KEY (model, kind)
);
