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

CREATE TABLE webhook (
  name text PRIMARY KEY,
  project text NOT NULL,
  url text NOT NULL,
  model text NOT NULL,
  events text[] NOT NULL,
  secret text NOT NULL,
  created_at timestamptz NOT NULL,
  created_by text NOT NULL
);
CREATE INDEX webhook_by_project ON webhook (project, name);

-- Written in the transaction of the change, so that each committed change reaches each webhook.
CREATE TABLE webhook_delivery (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  webhook text NOT NULL REFERENCES webhook ON DELETE CASCADE,
  body text NOT NULL,
  try_count bigint NOT NULL DEFAULT 0,
  last_result text NOT NULL DEFAULT '',
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  next_try_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  delivered_at timestamptz,
  given_up_at timestamptz
);
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_try_at)
  WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX webhook_delivery_by_webhook ON webhook_delivery (webhook, id);

-- The identity of this database, which its events carry: several registries may share one Kafka.
CREATE TABLE registry_identity (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  id uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO registry_identity DEFAULT VALUES;
CREATE TRIGGER registry_identity_written_once BEFORE UPDATE OR DELETE OR TRUNCATE ON registry_identity
  FOR EACH STATEMENT EXECUTE FUNCTION written_once();
