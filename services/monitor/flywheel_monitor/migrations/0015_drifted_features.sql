-- What drifted in a window, subject -> verdict (flywheel_monitor.alerts.lifecycle): features, or '' for kinds
-- that concern none. Windows that were judged before have what their reports say.
ALTER TABLE window_verdict ADD COLUMN drifted jsonb NOT NULL DEFAULT '{}';
UPDATE window_verdict SET drifted = jsonb_build_object('', verdict)
WHERE verdict IN (2, 3, 4) AND kind NOT IN ('DATA_DRIFT', 'DATA_QUALITY');
UPDATE window_verdict v SET drifted = found.drifted FROM (
    SELECT v.model_version_id, v.kind, v.end_us, v.start_us,
        jsonb_object_agg(f ->> 'feature', f -> 'verdict') AS drifted
    FROM window_verdict v JOIN window_report r USING (model_version_id, end_us, start_us)
        CROSS JOIN jsonb_array_elements(r.report -> 'features') AS f
    WHERE v.verdict IN (2, 3, 4) AND NOT coalesce((f ->> 'silenced')::boolean, false)
        AND (v.kind = 'DATA_DRIFT' AND f ->> 'verdict' IN ('2', '3')
            OR v.kind = 'DATA_QUALITY' AND f ->> 'verdict' = '4')
    GROUP BY 1, 2, 3, 4
) found
WHERE (v.model_version_id, v.kind, v.end_us, v.start_us)
    = (found.model_version_id, found.kind, found.end_us, found.start_us);
