-- Names, notes, deletion and continuation of runs; extremes of metrics; numeric params; and an index for
-- every condition and order of ListRuns.

ALTER TABLE run ADD COLUMN display_name text NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN notes text NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN deleted_at timestamptz;
-- Increases when another process continues the run: calls of the former process are refused.
ALTER TABLE run ADD COLUMN generation integer NOT NULL DEFAULT 1;

DROP INDEX run_newest;
CREATE INDEX run_started ON run (project, started_at, id);
CREATE INDEX run_ended ON run (project, ended_at);
CREATE INDEX run_experiment_started ON run (project, experiment, started_at, id);
CREATE INDEX run_state_started ON run (project, state, started_at);
CREATE INDEX run_display_name ON run (project, display_name);
CREATE INDEX run_tags ON run USING gin (tags jsonb_path_ops);

-- Extremes without NaN, unless all values are NaN.
ALTER TABLE run_metric ADD COLUMN min_value double precision NOT NULL DEFAULT 'NaN';
ALTER TABLE run_metric ADD COLUMN max_value double precision NOT NULL DEFAULT 'NaN';
UPDATE run_metric m SET min_value = p.min_value, max_value = p.max_value FROM (
    SELECT run_id, key, min(value) AS min_value, max(value) AS max_value
    FROM metric_point WHERE value <> 'NaN' GROUP BY run_id, key
) p WHERE (p.run_id, p.key) = (m.run_id, m.key);
DROP INDEX run_metric_search;
CREATE INDEX run_metric_last ON run_metric (key, value, run_id);
CREATE INDEX run_metric_min ON run_metric (key, min_value, run_id);
CREATE INDEX run_metric_max ON run_metric (key, max_value, run_id);

-- Params whose value is a number, for comparisons; written with the params. Params of earlier runs are compared
-- as text only.
CREATE TABLE run_param_number (
    run_id text NOT NULL REFERENCES run (id) ON DELETE CASCADE,
    key text NOT NULL,
    value double precision NOT NULL,
    PRIMARY KEY (run_id, key)
);
CREATE INDEX run_param_number_search ON run_param_number (key, value, run_id);
