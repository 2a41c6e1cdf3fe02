-- When the present step, or pause, of a rollout was reported to people: once each, also after a restart.
ALTER TABLE rollout ADD COLUMN alerted_at timestamptz;
