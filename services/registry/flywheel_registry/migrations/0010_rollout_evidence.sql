-- How many predictions the present step of a rollout rests on, and when their number changed last: a stall is found by
-- it also after a restart.
ALTER TABLE rollout
  ADD COLUMN evidence_count bigint NOT NULL DEFAULT 0,
  ADD COLUMN evidence_grew_at timestamptz;
