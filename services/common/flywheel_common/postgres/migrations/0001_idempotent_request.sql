-- First answers to mutations, kept in the transaction of their effect (flywheel_common.postgres.idempotency).
CREATE TABLE idempotent_request (
    scope       text        NOT NULL,
    method      text        NOT NULL,
    request_id  text        NOT NULL,
    body_sha256 bytea       NOT NULL,
    response    bytea,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (scope, method, request_id)
);
CREATE INDEX idempotent_request_age ON idempotent_request (created_at);
