-- What the active attempt of a join on a cluster may read and write on the object store:
-- {"reads": [...], "writes": [...], "artifacts": ""}. The version changes with each grant.
CREATE SEQUENCE join_access_version;
CREATE TABLE join_access (
    join_name text PRIMARY KEY,
    attempt text NOT NULL UNIQUE,
    access jsonb NOT NULL,
    version bigint NOT NULL DEFAULT nextval('join_access_version')
);

-- One row: the key of the tokens of attempts.
CREATE TABLE installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    token_key bytea NOT NULL DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')
);
INSERT INTO installation DEFAULT VALUES;
