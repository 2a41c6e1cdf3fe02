-- Ids have no language: their bytes are compared faster than their place in a dictionary.
ALTER TABLE prediction ALTER COLUMN prediction_id TYPE text COLLATE "C";
ALTER TABLE label ALTER COLUMN prediction_id TYPE text COLLATE "C";
ALTER TABLE outcome ALTER COLUMN prediction_id TYPE text COLLATE "C", ALTER COLUMN outcome_id TYPE text COLLATE "C";
