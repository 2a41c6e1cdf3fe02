-- Runs.
CREATE TABLE experiment (
    project text NOT NULL,
    id text NOT NULL,
    description text NOT NULL,
    tags jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (project, id)
);

CREATE TABLE run (
    id text PRIMARY KEY,
    project text NOT NULL,
    experiment text NOT NULL,
    state text NOT NULL CHECK (state IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'LOST')),
    params jsonb NOT NULL,
    tags jsonb NOT NULL,
    artifacts jsonb NOT NULL,
    code_version text NOT NULL,
    environment jsonb NOT NULL,
    training_set text NOT NULL,
    job text NOT NULL,
    lease_seconds double precision NOT NULL,
    heartbeat_at timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    ended_at timestamptz,
    error_message text NOT NULL DEFAULT '',
    CONSTRAINT run_experiment FOREIGN KEY (project, experiment) REFERENCES experiment (project, id)
);
CREATE INDEX run_newest ON run (project, id DESC);
CREATE INDEX run_alive ON run (heartbeat_at) WHERE state = 'RUNNING';
CREATE INDEX run_params ON run USING gin (params jsonb_path_ops);

CREATE TABLE metric_point (
    run_id text NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key text NOT NULL,
    step bigint NOT NULL,
    value double precision NOT NULL,
    time_us bigint NOT NULL,
    PRIMARY KEY (run_id, key, step)
);

-- The last value of every metric, so that search needs no scan over points.
CREATE TABLE run_metric (
    run_id text NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key text NOT NULL,
    step bigint NOT NULL,
    value double precision NOT NULL,
    PRIMARY KEY (run_id, key)
);
CREATE INDEX run_metric_search ON run_metric (key, value);

-- Jobs on the compute engine; the engine knows a job by the id used here.
CREATE TABLE job (
    id text PRIMARY KEY,
    project text NOT NULL,
    kind text NOT NULL,
    state text NOT NULL CHECK (state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'LOST')),
    spec jsonb NOT NULL,
    run_id text NOT NULL REFERENCES run (id),
    priority integer NOT NULL,
    cancel_requested boolean NOT NULL DEFAULT false,
    progress jsonb NOT NULL DEFAULT '{}',
    error_reason text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    started_at timestamptz,
    ended_at timestamptz
);
CREATE INDEX job_newest ON job (project, id DESC);
CREATE INDEX job_active ON job (priority DESC, created_at) WHERE state IN ('QUEUED', 'RUNNING');

-- Pipelines: what people see of a durable workflow, and the intent to start it.
CREATE TABLE pipeline_run (
    id text PRIMARY KEY,
    project text NOT NULL,
    model text NOT NULL,
    spec jsonb NOT NULL,
    state text NOT NULL CHECK (state IN ('QUEUED', 'RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'LOST')),
    training_set text NOT NULL DEFAULT '',
    run text NOT NULL DEFAULT '',
    model_version text NOT NULL DEFAULT '',
    release text NOT NULL DEFAULT '',
    rollout text NOT NULL DEFAULT '',
    gate_passed boolean NOT NULL DEFAULT false,
    error_reason text NOT NULL DEFAULT '',
    error_message text NOT NULL DEFAULT '',
    cause_alert text NOT NULL DEFAULT '',
    cancel_requested boolean NOT NULL DEFAULT false,
    event_time timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    ended_at timestamptz
);
CREATE INDEX pipeline_run_newest ON pipeline_run (project, id DESC);
CREATE INDEX pipeline_run_active ON pipeline_run (model) WHERE state IN ('QUEUED', 'RUNNING');

CREATE TABLE pipeline_step (
    pipeline_run text NOT NULL REFERENCES pipeline_run (id) ON DELETE CASCADE,
    position smallint NOT NULL,
    step text NOT NULL,
    state text NOT NULL,
    started_at timestamptz,
    ended_at timestamptz,
    output text NOT NULL DEFAULT '',
    message text NOT NULL DEFAULT '',
    PRIMARY KEY (pipeline_run, position)
);

-- Retraining.
CREATE TABLE retraining_policy (
    project text NOT NULL,
    id text NOT NULL,
    body jsonb NOT NULL,
    updated_at timestamptz NOT NULL,
    PRIMARY KEY (project, id)
);

CREATE TABLE retraining_decision (
    id text PRIMARY KEY,
    project text NOT NULL,
    policy text NOT NULL,
    alert text NOT NULL,
    model text NOT NULL,
    event_time timestamptz NOT NULL,
    started boolean NOT NULL,
    reason text NOT NULL,
    pipeline_run text NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT retraining_decision_once UNIQUE (project, policy, alert)
);
CREATE INDEX retraining_decision_started ON retraining_decision (project, policy, event_time) WHERE started;
