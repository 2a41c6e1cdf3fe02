-- The digests of the blocks of stored contents, one after the other: a range is checked without reading the whole.
CREATE TABLE artifact_block (
  sha256 text PRIMARY KEY,
  digests bytea NOT NULL
);
-- Collection looks for versions that were deleted long ago.
CREATE INDEX deleted_version ON model_version (deleted_at) WHERE deleted_at IS NOT NULL AND NOT purged;
