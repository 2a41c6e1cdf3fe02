-- Models are keyed by their full resource name. Versions, releases, rollouts and evidence are numbered within
-- their model, from counters in its row.
CREATE TABLE model (
  name text PRIMARY KEY,
  project text NOT NULL,
  description text NOT NULL,
  owner text NOT NULL,
  tags jsonb NOT NULL,
  gate_policy jsonb NOT NULL,
  rollout_policy jsonb NOT NULL,
  revision bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL,
  last_version bigint NOT NULL DEFAULT 0,
  last_release bigint NOT NULL DEFAULT 0,
  last_rollout bigint NOT NULL DEFAULT 0,
  last_evidence bigint NOT NULL DEFAULT 0
);
CREATE INDEX model_by_project ON model (project, name);

CREATE TABLE model_version (
  model text NOT NULL REFERENCES model,
  number bigint NOT NULL,
  stage text NOT NULL CHECK (stage IN ('NONE', 'STAGING', 'CANDIDATE', 'PRODUCTION', 'ARCHIVED', 'REJECTED')),
  training_run text NOT NULL,
  framework text NOT NULL,
  metrics jsonb NOT NULL,
  feature_set text NOT NULL,
  training_dataset text NOT NULL,
  signature jsonb NOT NULL,
  golden_row_count bigint NOT NULL,
  golden_inputs bytea NOT NULL,
  golden_scores bytea NOT NULL,
  golden_tolerance double precision NOT NULL,
  tags jsonb NOT NULL,
  description text NOT NULL,
  parent_version text NOT NULL,
  cause_alert text NOT NULL,
  pipeline_run text NOT NULL,
  registered_at timestamptz NOT NULL,
  registered_by text NOT NULL,
  promoted_at timestamptz,
  promoted_by text NOT NULL DEFAULT '',
  PRIMARY KEY (model, number)
);
-- At most one champion per model, also under concurrent transactions.
CREATE UNIQUE INDEX one_production_per_model ON model_version (model) WHERE stage = 'PRODUCTION';

CREATE TABLE artifact (
  model text NOT NULL,
  version bigint NOT NULL,
  name text NOT NULL,
  position bigint NOT NULL,
  size_bytes bigint NOT NULL,
  sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
  stored boolean NOT NULL DEFAULT false,
  PRIMARY KEY (model, version, name),
  FOREIGN KEY (model, version) REFERENCES model_version
);
CREATE INDEX artifact_by_digest ON artifact (sha256);

CREATE TABLE release (
  model text NOT NULL,
  number bigint NOT NULL,
  version bigint NOT NULL,
  feature_set text NOT NULL,
  body jsonb NOT NULL,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL,
  PRIMARY KEY (model, number),
  FOREIGN KEY (model, version) REFERENCES model_version
);

CREATE TABLE evidence (
  model text NOT NULL,
  number bigint NOT NULL,
  kind text NOT NULL,
  version bigint NOT NULL,
  numbers jsonb NOT NULL,
  findings jsonb NOT NULL,
  passed boolean NOT NULL,
  created_at timestamptz NOT NULL,
  PRIMARY KEY (model, number),
  FOREIGN KEY (model, version) REFERENCES model_version
);

CREATE TABLE rollout (
  model text NOT NULL,
  number bigint NOT NULL,
  champion bigint,
  challenger bigint NOT NULL,
  state text NOT NULL,
  resume_to text,
  step bigint NOT NULL,
  challenger_percent double precision NOT NULL,
  policy jsonb NOT NULL,
  step_started_at timestamptz,
  last_decision text,
  reason text NOT NULL,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL,
  ended_at timestamptz,
  PRIMARY KEY (model, number),
  FOREIGN KEY (model, champion) REFERENCES release,
  FOREIGN KEY (model, challenger) REFERENCES release
);
CREATE UNIQUE INDEX one_active_rollout_per_model ON rollout (model) WHERE ended_at IS NULL;

CREATE TABLE rollout_step (
  model text NOT NULL,
  rollout bigint NOT NULL,
  step bigint NOT NULL,
  state text NOT NULL,
  challenger_percent double precision NOT NULL,
  entered_at timestamptz NOT NULL,
  reason text NOT NULL,
  evidence bigint,
  PRIMARY KEY (model, rollout, step),
  FOREIGN KEY (model, rollout) REFERENCES rollout
);

-- The routing of each model, which gateways apply.
CREATE TABLE serving (
  model text PRIMARY KEY REFERENCES model,
  generation bigint NOT NULL,
  champion bigint,
  challenger bigint,
  rollout bigint,
  shadow_percent double precision NOT NULL,
  challenger_percent double precision NOT NULL,
  FOREIGN KEY (model, champion) REFERENCES release,
  FOREIGN KEY (model, challenger) REFERENCES release
);

CREATE TABLE serving_span (
  model text NOT NULL REFERENCES model,
  position bigint NOT NULL,
  release bigint NOT NULL,
  version bigint NOT NULL,
  since timestamptz NOT NULL,
  until timestamptz,
  reason text NOT NULL,
  by_rollback boolean NOT NULL,
  PRIMARY KEY (model, position),
  FOREIGN KEY (model, release) REFERENCES release
);
CREATE UNIQUE INDEX one_open_span_per_model ON serving_span (model) WHERE until IS NULL;

CREATE TABLE audit (
  model text NOT NULL REFERENCES model,
  sequence bigint NOT NULL,
  at timestamptz NOT NULL,
  actor text NOT NULL,
  action text NOT NULL,
  subject text NOT NULL,
  from_state text NOT NULL,
  to_state text NOT NULL,
  reason text NOT NULL,
  evidence text NOT NULL,
  hash text NOT NULL,
  PRIMARY KEY (model, sequence)
);

-- Audit, evidence and releases are append-only. Triggers also bind the owner of a table; revoked grants do not.
CREATE FUNCTION written_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER audit_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();
CREATE TRIGGER evidence_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON evidence
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();
CREATE TRIGGER release_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON release
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();

-- Heartbeats are reported again within a second, so they need no write-ahead log.
CREATE UNLOGGED TABLE gateway (
  id text PRIMARY KEY,
  project text NOT NULL DEFAULT '',
  last_heartbeat timestamptz NOT NULL,
  observed jsonb NOT NULL
);
