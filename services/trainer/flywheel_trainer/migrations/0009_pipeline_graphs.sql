-- Pipelines as graphs: stored versions, the graph of a run as rows of steps, and the cache of steps.
CREATE TABLE pipeline_definition (
    project text NOT NULL,
    id text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    graph jsonb NOT NULL,
    content_hash text NOT NULL,
    created_by text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, id, version)
);

-- Null: a run of a stored pipeline.
ALTER TABLE pipeline_run ALTER COLUMN spec DROP NOT NULL;
ALTER TABLE pipeline_run ADD COLUMN pipeline text NOT NULL DEFAULT '';
ALTER TABLE pipeline_run ADD COLUMN params jsonb NOT NULL DEFAULT '{}';
ALTER TABLE pipeline_run ADD COLUMN rerun_of text NOT NULL DEFAULT '';
ALTER TABLE pipeline_run ADD COLUMN policy text NOT NULL DEFAULT '';
CREATE INDEX pipeline_run_version ON pipeline_run (model_version) WHERE model_version <> '';

ALTER TABLE pipeline_step ADD COLUMN definition jsonb;
ALTER TABLE pipeline_step ADD COLUMN attempt integer NOT NULL DEFAULT 0;
ALTER TABLE pipeline_step ADD COLUMN outputs jsonb NOT NULL DEFAULT '{}';
ALTER TABLE pipeline_step ADD COLUMN error_reason text NOT NULL DEFAULT '';
-- {approved, by, reason}
ALTER TABLE pipeline_step ADD COLUMN approval jsonb;
ALTER TABLE pipeline_step ADD COLUMN reused_from text NOT NULL DEFAULT '';
ALTER TABLE pipeline_step ADD CONSTRAINT pipeline_step_once UNIQUE (pipeline_run, step);
-- Runs of older versions are shown with their steps; those that have not ended cannot go on.
UPDATE pipeline_step SET definition = jsonb_build_object(
    'id', step,
    'kind', CASE step WHEN 'train' THEN 'job' WHEN 'evaluate' THEN 'compare' ELSE step END,
    'spec', '{}'::jsonb, 'inputs', '{}'::jsonb, 'after', '[]'::jsonb, 'conditions', '[]'::jsonb, 'for_each', NULL
);
ALTER TABLE pipeline_step ALTER COLUMN definition SET NOT NULL;
UPDATE pipeline_run SET
    state = 'FAILED',
    error_reason = 'WORKFLOW_FAILED',
    error_message = 'An older version of the trainer started the run; start a new one.',
    ended_at = now()
WHERE state IN ('QUEUED', 'RUNNING');

CREATE TABLE pipeline_step_cache (
    project text NOT NULL,
    key text NOT NULL,
    pipeline_run text NOT NULL,
    step text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, key),
    CONSTRAINT pipeline_step_cache_step FOREIGN KEY (pipeline_run, step)
        REFERENCES pipeline_step (pipeline_run, step) ON DELETE CASCADE
);
