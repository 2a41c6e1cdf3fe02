-- What is deleted stays restorable until its artifacts are collected. Versions and releases that are deleted with
-- their model have its time of deletion.
ALTER TABLE model ADD COLUMN deleted_at timestamptz;
ALTER TABLE model_version
  ADD COLUMN deleted_at timestamptz,
  -- Its artifacts were collected: it is kept only because evidence refers to it.
  ADD COLUMN purged boolean NOT NULL DEFAULT false,
  ADD COLUMN project text GENERATED ALWAYS AS (split_part(model, '/', 2)) STORED;
-- Releases are append-only.
CREATE TABLE release_deletion (
  model text NOT NULL,
  number bigint NOT NULL,
  deleted_at timestamptz NOT NULL,
  PRIMARY KEY (model, number),
  FOREIGN KEY (model, number) REFERENCES release
);

CREATE TABLE model_alias (
  model text NOT NULL,
  alias text NOT NULL,
  version bigint NOT NULL,
  protected boolean NOT NULL,
  set_at timestamptz NOT NULL,
  set_by text NOT NULL,
  PRIMARY KEY (model, alias),
  FOREIGN KEY (model, version) REFERENCES model_version
);
CREATE INDEX model_alias_by_version ON model_alias (model, version);

-- The metrics of versions, which never change, as rows: a search reads them in the order of their values.
CREATE TABLE version_metric (
  model text NOT NULL,
  version bigint NOT NULL,
  name text NOT NULL,
  value double precision NOT NULL,
  project text NOT NULL,
  PRIMARY KEY (model, version, name),
  FOREIGN KEY (model, version) REFERENCES model_version ON DELETE CASCADE
);
INSERT INTO version_metric (model, version, name, value, project)
SELECT v.model, v.number, m.key, m.value::double precision, v.project
FROM model_version v, jsonb_each_text(v.metrics) m;
CREATE INDEX version_metric_by_value ON version_metric (project, name, value, model, version);

CREATE INDEX version_by_registration ON model_version (project, registered_at, model, number);
CREATE INDEX version_by_tag ON model_version USING gin (tags jsonb_path_ops);
CREATE INDEX version_by_source ON model_version USING gin (
  (ARRAY[training_run, training_dataset, feature_set, parent_version, cause_alert, pipeline_run])
);
