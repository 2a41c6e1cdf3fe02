-- Attempts of jobs, the identity of this installation, and job specifications as protobuf messages (JSON mapping).

-- One row: the name by which jobs on a shared cluster are told apart, and the key of the tokens of attempts.
CREATE TABLE installation (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id text NOT NULL DEFAULT gen_random_uuid()::text,
    token_key bytea NOT NULL DEFAULT decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex')
);
INSERT INTO installation DEFAULT VALUES;

ALTER TABLE job ADD COLUMN experiment text;
ALTER TABLE job ADD COLUMN training_set text;
ALTER TABLE job ADD COLUMN details jsonb;
ALTER TABLE job ADD COLUMN pipeline_run text NOT NULL DEFAULT '';
UPDATE job SET
    experiment = spec ->> 'experiment',
    training_set = spec ->> 'training_set',
    details = spec -> 'details',
    spec = jsonb_build_object('train', jsonb_build_object(
        'experiment', 'projects/' || project || '/experiments/' || (spec ->> 'experiment'),
        'training_set', spec -> 'training_set',
        'tabular', (spec -> 'hyperparameters') || jsonb_build_object('warm_start', spec -> 'warm_start'),
        'workers', spec -> 'workers',
        'gpus_per_worker', spec -> 'gpus_per_worker'
    ));
ALTER TABLE job ALTER COLUMN experiment SET NOT NULL;
ALTER TABLE job ALTER COLUMN training_set SET NOT NULL;
ALTER TABLE job ALTER COLUMN details SET NOT NULL;
CREATE INDEX job_pipeline_run ON job (pipeline_run) WHERE pipeline_run <> '' AND state IN ('QUEUED', 'RUNNING');
CREATE INDEX job_run ON job (run_id) WHERE state IN ('QUEUED', 'RUNNING');

-- Executions of jobs on the compute engine. A row exists before the engine hears of the attempt.
CREATE TABLE attempt (
    job_id text NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number integer NOT NULL CHECK (number > 0),
    engine_id text NOT NULL UNIQUE,
    -- Fencing token of the supervisor that began it.
    token bigint NOT NULL,
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    error_reason text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    -- What the supervisor has seen of it: the sum of the steps of its metrics, the time without a new one, when it
    -- was last seen running, and why it is to be stopped.
    mark bigint NOT NULL DEFAULT -1,
    idle_seconds double precision NOT NULL DEFAULT 0,
    checked_at timestamptz,
    stopping_reason text NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, number)
);
CREATE UNIQUE INDEX attempt_active ON attempt (job_id) WHERE ended_at IS NULL;
INSERT INTO attempt (job_id, number, engine_id, token, created_at, started_at)
SELECT id, 1, id, 0, coalesce(started_at, created_at), coalesce(started_at, created_at) FROM job WHERE state = 'RUNNING';
