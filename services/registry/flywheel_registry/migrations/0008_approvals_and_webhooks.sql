-- Approvals are append-only, as evidence is.
CREATE TABLE approval (
  model text NOT NULL,
  version bigint NOT NULL,
  approver text NOT NULL,
  reason text NOT NULL,
  approved_at timestamptz NOT NULL,
  PRIMARY KEY (model, version, approver),
  FOREIGN KEY (model, version) REFERENCES model_version
);
CREATE TRIGGER approval_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON approval
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();

-- What each webhook (flywheel_common.webhooks) is told about; an empty model: all models of the project.
CREATE TABLE webhook_subscription (
  project text NOT NULL,
  webhook text NOT NULL,
  model text NOT NULL,
  events text[] NOT NULL,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL,
  PRIMARY KEY (project, webhook),
  FOREIGN KEY (project, webhook) REFERENCES webhook (project, id) ON DELETE CASCADE
);

-- The identity of this database, which its events carry: several registries may share one Kafka.
CREATE TABLE registry_identity (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO registry_identity DEFAULT VALUES;
CREATE TRIGGER registry_identity_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON registry_identity
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();
