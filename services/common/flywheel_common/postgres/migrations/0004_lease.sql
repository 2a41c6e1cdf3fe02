-- Who may do what only one may do at a time (flywheel_common.postgres.lease). token rises with every change of holder.
CREATE TABLE lease (
    name       text        PRIMARY KEY,
    holder     text        NOT NULL,
    token      bigint      NOT NULL,
    expires_at timestamptz NOT NULL
);
