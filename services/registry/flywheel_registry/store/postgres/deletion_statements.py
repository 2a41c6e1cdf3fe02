"""The SQL statements that delete and restore models, versions and releases."""

from __future__ import annotations

DELETE_VERSION = "UPDATE model_version SET deleted_at = $3 WHERE model = $1 AND number = $2"
RESTORE_VERSION = """
UPDATE model_version SET deleted_at = NULL
WHERE model = $1 AND number = $2 AND deleted_at IS NOT NULL AND NOT purged RETURNING 1
"""
DELETE_RELEASE = "INSERT INTO release_deletion (model, number, deleted_at) VALUES ($1, $2, $3)"
RESTORE_RELEASE = "DELETE FROM release_deletion WHERE model = $1 AND number = $2 RETURNING 1"
# One time for all marks the versions and releases that come back with their model.
DELETE_MODEL = """
WITH versions AS (
  UPDATE model_version SET deleted_at = $2 WHERE model = $1 AND deleted_at IS NULL
), releases AS (
  INSERT INTO release_deletion (model, number, deleted_at)
  SELECT r.model, r.number, $2 FROM release r WHERE r.model = $1 ON CONFLICT DO NOTHING
)
UPDATE model SET deleted_at = $2, revision = revision + 1 WHERE name = $1
"""
RESTORE_MODEL = """
WITH deleted AS (
  SELECT name, deleted_at FROM model WHERE name = $1 AND deleted_at IS NOT NULL FOR UPDATE
), versions AS (
  UPDATE model_version v SET deleted_at = NULL
  FROM deleted d WHERE v.model = d.name AND v.deleted_at = d.deleted_at AND NOT v.purged
), releases AS (
  DELETE FROM release_deletion r USING deleted d
  WHERE r.model = d.name AND r.deleted_at = d.deleted_at
    AND NOT EXISTS (
      SELECT FROM release x JOIN model_version v ON v.model = x.model AND v.number = x.version
      WHERE x.model = r.model AND x.number = r.number AND v.purged
    )
)
UPDATE model m SET deleted_at = NULL, revision = revision + 1
FROM deleted d WHERE m.name = d.name RETURNING 1
"""
