-- Complete checkpoints of jobs, as their attempts report them after the marker. Restoring reads the object store alone.
CREATE TABLE checkpoint (
    job_id text NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    -- Below the folder of the job's checkpoints; empty for those of the job itself, else of a trial.
    folder text NOT NULL,
    -- Last part of the prefix, {step}-{attempt}.
    name text NOT NULL,
    step bigint NOT NULL CHECK (step >= 0),
    attempt integer NOT NULL CHECK (attempt > 0),
    world_size integer NOT NULL CHECK (world_size > 0),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    created_at timestamptz NOT NULL,
    metrics jsonb NOT NULL,
    PRIMARY KEY (job_id, folder, name)
);
