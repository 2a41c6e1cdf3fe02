-- A prediction is identified by (model, prediction id, shadow variant or 0 for the served answer), a label and an outcome
-- by their model and id: models that share ids do not lose rows or exchange labels.
ALTER TABLE prediction ADD COLUMN model_id integer;
ALTER TABLE prediction ADD COLUMN shadow_variant integer NOT NULL DEFAULT 0;
UPDATE prediction p SET model_id = v.model_id, shadow_variant = CASE WHEN p.shadow THEN t.id ELSE 0 END
FROM variant t JOIN model_version v ON v.id = t.model_version_id WHERE t.id = p.variant_id;
ALTER TABLE prediction DROP CONSTRAINT prediction_pkey;
ALTER TABLE prediction DROP COLUMN shadow;
ALTER TABLE prediction ALTER COLUMN model_id SET NOT NULL;
ALTER TABLE prediction ADD PRIMARY KEY (model_id, prediction_id, shadow_variant);

-- A stored label belongs to the model of its prediction. A label that waits for its prediction belongs to the only model
-- that has such labels in the partition; with several of them it cannot be assigned and is deleted.
ALTER TABLE label ADD COLUMN model_id integer;
UPDATE label l SET model_id = p.model_id FROM prediction p WHERE p.prediction_id = l.prediction_id;
UPDATE label l SET model_id = c.model_id FROM (
    SELECT partition, min(model_id) AS model_id FROM ingest_count WHERE orphans > 0
    GROUP BY partition HAVING count(*) = 1
) c WHERE l.model_id IS NULL AND c.partition = l.partition;
DELETE FROM label WHERE model_id IS NULL;
UPDATE ingest_count c SET orphans = (
    SELECT count(*) FROM label l WHERE l.model_id = c.model_id AND l.partition = c.partition AND NOT EXISTS (
        SELECT FROM prediction p
        WHERE p.model_id = l.model_id AND p.prediction_id = l.prediction_id AND p.shadow_variant = 0
    )
);
ALTER TABLE label DROP CONSTRAINT label_pkey;
ALTER TABLE label ALTER COLUMN model_id SET NOT NULL;
ALTER TABLE label ADD PRIMARY KEY (model_id, prediction_id);

ALTER TABLE outcome DROP CONSTRAINT outcome_pkey;
ALTER TABLE outcome ADD PRIMARY KEY (model_id, outcome_id);
DROP INDEX outcome_prediction;
CREATE INDEX outcome_prediction ON outcome (model_id, prediction_id);
