-- Each step of a rollout has evidence and a clock of its own: the generation of the routing that the step began
-- with, and the wall time that it has run without pauses.
ALTER TABLE rollout
  ADD COLUMN generation bigint NOT NULL DEFAULT 0,
  ADD COLUMN step_entered_at timestamptz,
  ADD COLUMN step_ran_seconds double precision NOT NULL DEFAULT 0;

-- The project that each gateway watches. Logged, unlike its heartbeats: a gateway tells it only when it begins to
-- watch, so a crash of the database must not lose it.
CREATE TABLE gateway_project (
  gateway text PRIMARY KEY,
  project text NOT NULL,
  watched_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO gateway_project (gateway, project) SELECT id, project FROM gateway;
ALTER TABLE gateway DROP COLUMN project;

-- Evidence names where its numbers come from and what they were compared with; audit entries cover its content.
ALTER TABLE evidence
  ADD COLUMN producer text NOT NULL DEFAULT '',
  ADD COLUMN champion bigint,
  ADD COLUMN rollout bigint,
  ADD COLUMN step bigint,
  ADD COLUMN policy text NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN evidence_hash text NOT NULL DEFAULT '';

-- The head of each audit chain beside the chain: it shows when the newest entries, or all of them, were removed.
ALTER TABLE model
  ADD COLUMN last_audit bigint NOT NULL DEFAULT 0,
  ADD COLUMN audit_head text NOT NULL DEFAULT '';
UPDATE model SET last_audit = newest.sequence, audit_head = newest.hash
FROM (SELECT DISTINCT ON (model) model, sequence, hash FROM audit ORDER BY model, sequence DESC) newest
WHERE newest.model = model.name;
