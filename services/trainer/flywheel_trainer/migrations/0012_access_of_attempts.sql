-- What an attempt may read and write on the object store: {"reads": [...], "writes": [...], "artifacts": "..."}; null
-- until it is submitted.
ALTER TABLE attempt ADD COLUMN access jsonb;
