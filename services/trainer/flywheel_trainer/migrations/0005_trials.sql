-- Trials of TUNE jobs, which are runs below the run of their job.
ALTER TABLE run ADD COLUMN parent_run text NOT NULL DEFAULT '';
CREATE INDEX run_children ON run (parent_run) WHERE parent_run <> '';

CREATE TABLE trial (
    job_id text NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number integer NOT NULL CHECK (number >= 0),
    run_id text NOT NULL REFERENCES run (id),
    state text NOT NULL CHECK (state IN ('RUNNING', 'SUCCEEDED', 'STOPPED', 'FAILED', 'CANCELLED')),
    -- flywheel.trainer.v1.Trial (JSON mapping) without name, run, state and times.
    body jsonb NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    PRIMARY KEY (job_id, number)
);
