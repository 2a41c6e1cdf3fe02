-- Where changes are sent by HTTP, and what is to be sent (flywheel_common.webhooks).
CREATE TABLE webhook (
    project    text        NOT NULL,
    id         text        NOT NULL,
    url        text        NOT NULL,
    format     text        NOT NULL,
    secret     text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project, id)
);
CREATE TABLE webhook_delivery (
    serial     bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    project    text        NOT NULL,
    webhook    text        NOT NULL,
    event_id   text        NOT NULL,
    body       bytea       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts   integer     NOT NULL DEFAULT 0,
    ended_at   timestamptz,
    error      text        NOT NULL DEFAULT '',
    UNIQUE (project, webhook, event_id),
    FOREIGN KEY (project, webhook) REFERENCES webhook (project, id) ON DELETE CASCADE
);
CREATE INDEX webhook_delivery_waiting ON webhook_delivery (project, webhook, serial) WHERE ended_at IS NULL;
