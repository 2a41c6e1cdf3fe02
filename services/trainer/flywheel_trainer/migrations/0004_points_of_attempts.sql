-- The attempt that wrote a point: a later attempt replaces points of earlier ones, and only those.
ALTER TABLE metric_point ADD COLUMN attempt integer NOT NULL DEFAULT 0;
ALTER TABLE run_metric ADD COLUMN attempt integer NOT NULL DEFAULT 0;
