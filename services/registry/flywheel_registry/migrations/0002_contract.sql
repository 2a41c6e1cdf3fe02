-- Signatures with tensors and an output, golden rows as tensors, and the result of a version's check.
UPDATE model_version SET signature =
  jsonb_build_object('inputs', signature, 'tensors', '[]'::jsonb, 'output', '{}'::jsonb);

-- Golden rows: [name, data type, shape] and the bytes of each tensor, the output last. Both are empty without
-- golden rows. Before, there was one float32 input tensor and one float32 score per row.
ALTER TABLE model_version
  ADD COLUMN golden_tensors jsonb NOT NULL DEFAULT '[]',
  ADD COLUMN golden_data bytea[] NOT NULL DEFAULT '{}';
UPDATE model_version SET
  golden_tensors = jsonb_build_array(
    jsonb_build_array('INPUT', 3, jsonb_build_array(
      golden_row_count, length(golden_inputs) / 4 / golden_row_count)),
    jsonb_build_array('SCORE', 3, jsonb_build_array(golden_row_count))),
  golden_data = ARRAY[golden_inputs, golden_scores]
WHERE golden_row_count > 0;
ALTER TABLE model_version
  ALTER COLUMN golden_tensors DROP DEFAULT,
  ALTER COLUMN golden_data DROP DEFAULT,
  DROP COLUMN golden_row_count,
  DROP COLUMN golden_inputs,
  DROP COLUMN golden_scores;

-- What the check of a version found: null before it, [] when it passed. Versions that were complete before
-- there was a check count as passed.
ALTER TABLE model_version ADD COLUMN check_problems jsonb;
UPDATE model_version v SET check_problems = '[]'
WHERE NOT EXISTS (SELECT 1 FROM artifact a WHERE a.model = v.model AND a.version = v.number AND NOT a.stored);

-- Variants: [name, release, percent, percent of copies], in the order in which they take their subjects.
ALTER TABLE serving ADD COLUMN variants jsonb NOT NULL DEFAULT '[]';
