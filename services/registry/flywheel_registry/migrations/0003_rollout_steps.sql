-- The project that each gateway watches. Logged, unlike its heartbeats: a gateway tells it only when it begins to
-- watch, so a crash of the database must not lose it.
CREATE TABLE gateway_project (
  gateway text PRIMARY KEY,
  project text NOT NULL,
  watched_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO gateway_project (gateway, project) SELECT id, project FROM gateway;
ALTER TABLE gateway DROP COLUMN project;
