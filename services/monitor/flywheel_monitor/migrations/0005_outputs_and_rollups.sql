-- The output of a version (flywheel_monitor.windows.output), fixed by its first batch; all versions so far are BINARY.
-- first_labels: histogram of the labels of the first window judged with labels.
-- rolled_up: whether hours and days exist for all panes; not for those counted before this migration.
ALTER TABLE model_version
    ADD COLUMN output jsonb NOT NULL
        DEFAULT '{"kind": 1, "width": 1, "class_names": [], "center": 0.0, "scale": 1.0}',
    ADD COLUMN first_labels jsonb,
    ADD COLUMN rolled_up boolean NOT NULL DEFAULT true;
ALTER TABLE model_version ALTER COLUMN output DROP DEFAULT;
UPDATE model_version SET rolled_up = false;

-- outputs: little-endian float64 of the values of an answer, for MULTICLASS; `score` is derived from them.
ALTER TABLE prediction
    ADD COLUMN outputs bytea,
    ADD COLUMN cost real,
    ADD COLUMN subject text NOT NULL DEFAULT '';
ALTER TABLE label ADD COLUMN class_name text NOT NULL DEFAULT '';

-- Panes belong to variants, so that variants are compared by them, and exist per hour and day besides. Panes of before
-- belong to a variant of the version without a release; comparisons begin anew.
INSERT INTO variant (model_version_id, release, rollout, role)
SELECT DISTINCT model_version_id, '', '', CASE WHEN shadow THEN 3 ELSE 1 END FROM pane ON CONFLICT DO NOTHING;
ALTER TABLE pane ADD COLUMN variant_id integer REFERENCES variant, ADD COLUMN width_us bigint;
UPDATE pane p SET variant_id = t.id FROM variant t
WHERE t.model_version_id = p.model_version_id AND t.release = '' AND t.rollout = ''
    AND t.role = CASE WHEN p.shadow THEN 3 ELSE 1 END;
-- 0 is replaced by the width of a pane, which only the settings know, when the service starts.
UPDATE pane SET width_us = 0;
ALTER TABLE pane DROP CONSTRAINT pane_pkey;
ALTER TABLE pane DROP COLUMN model_version_id, DROP COLUMN shadow;
ALTER TABLE pane ALTER COLUMN variant_id SET NOT NULL, ALTER COLUMN width_us SET NOT NULL;
ALTER TABLE pane ADD PRIMARY KEY (variant_id, segment, width_us, start_us, partition);
