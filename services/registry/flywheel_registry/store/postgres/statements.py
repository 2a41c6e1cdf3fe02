"""The SQL statements of the registry. Values are always parameters; jsonb is sent and read as text."""

from __future__ import annotations

# --------------------------------------------------------------------------------------------------- models
INSERT_MODEL = """
INSERT INTO model (name, project, description, owner, tags, gate_policy, rollout_policy, created_at)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6::text::jsonb, $7::text::jsonb, $8)
ON CONFLICT DO NOTHING RETURNING name
"""
_MODEL = """
SELECT m.name, m.description, m.owner, m.tags::text AS tags, m.gate_policy::text AS gate_policy,
       m.rollout_policy::text AS rollout_policy, m.revision, m.created_at, s.champion AS production_release,
       r.version AS production_version, coalesce(s.variants, '[]')::text AS variants
FROM model m
LEFT JOIN serving s ON s.model = m.name
LEFT JOIN release r ON r.model = s.model AND r.number = s.champion
"""
SELECT_MODEL = _MODEL + "WHERE m.name = $1 AND m.deleted_at IS NULL"
LIST_MODELS = (
    _MODEL
    + """
WHERE m.project = $1 AND m.name > $2 AND m.tags @> $3::text::jsonb AND m.deleted_at IS NULL
ORDER BY m.name LIMIT $4
"""
)
LOCK_MODEL = "SELECT 1 FROM model WHERE name = $1 AND deleted_at IS NULL FOR NO KEY UPDATE"
UPDATE_MODEL = """
UPDATE model SET description = $2, owner = $3, tags = $4::text::jsonb, gate_policy = $5::text::jsonb,
       rollout_policy = $6::text::jsonb, revision = revision + 1
WHERE name = $1
"""
NEXT_NUMBER = {
    kind: f"UPDATE model SET last_{kind} = last_{kind} + 1 WHERE name = $1 RETURNING last_{kind}"
    for kind in ("version", "release", "rollout", "evidence")
}

# ------------------------------------------------------------------------------------------------- versions
INSERT_VERSION = """
INSERT INTO model_version (model, number, stage, training_run, framework, metrics, feature_set,
  training_dataset, signature, golden_tensors, golden_data, golden_tolerance, tags, description,
  parent_version, cause_alert, pipeline_run, registered_at, registered_by, check_problems)
VALUES ($1, $2, $3, $4, $5, $6::text::jsonb, $7, $8, $9::text::jsonb, $10::text::jsonb, $11, $12,
  $13::text::jsonb, $14, $15, $16, $17, $18, $19, $20::text::jsonb)
"""
INSERT_METRICS = """
INSERT INTO version_metric (model, version, name, value, project)
SELECT $1, $2, m.name, m.value, split_part($1, '/', 2)
FROM unnest($3::text[], $4::double precision[]) AS m (name, value)
"""
INSERT_ARTIFACTS = """
INSERT INTO artifact (model, version, name, position, size_bytes, sha256)
SELECT $1, $2, a.name, a.position, a.size_bytes, a.sha256
FROM unnest($3::text[], $4::bigint[], $5::bigint[], $6::text[]) AS a (name, position, size_bytes, sha256)
"""
VERSION_COLUMNS = """
v.model, v.number, v.stage, v.training_run, v.framework, v.metrics::text AS metrics, v.feature_set,
v.training_dataset, v.signature::text AS signature, v.golden_tensors::text AS golden_tensors, v.golden_data,
v.golden_tolerance, v.check_problems::text AS check_problems, v.tags::text AS tags, v.description,
v.parent_version, v.cause_alert, v.pipeline_run, v.registered_at, v.registered_by, v.promoted_at,
v.promoted_by,
(SELECT coalesce(json_agg(
    json_build_array(a.name, a.size_bytes, a.sha256, a.stored) ORDER BY a.position
  ), '[]')::text
 FROM artifact a WHERE a.model = v.model AND a.version = v.number) AS artifacts
"""
LISTED_COLUMNS = VERSION_COLUMNS.replace(
    "v.golden_tensors::text AS golden_tensors, v.golden_data",
    "'[]' AS golden_tensors, '{}'::bytea[] AS golden_data",
)
"""The columns of a version without its golden rows."""
SELECT_VERSION = f"""
SELECT {VERSION_COLUMNS} FROM model_version v
WHERE v.model = $1 AND v.number = $2 AND v.deleted_at IS NULL
"""
LIST_VERSIONS = f"""
SELECT {VERSION_COLUMNS} FROM model_version v
WHERE v.model = $1 AND v.number < $2 AND ($3 = '' OR v.stage = $3) AND v.tags @> $4::text::jsonb
  AND v.deleted_at IS NULL
ORDER BY v.number DESC LIMIT $5
"""
LIST_VERSIONS_WITHOUT_GOLDEN_ROWS = LIST_VERSIONS.replace(VERSION_COLUMNS, LISTED_COLUMNS)
LIST_FEATURE_USES = """
SELECT u.model, u.number, u.stage, u.feature_set FROM (
  SELECT v.model, v.number, v.stage, v.feature_set FROM model_version v WHERE v.deleted_at IS NULL
  UNION
  SELECT r.model, r.version, v.stage, r.feature_set
  FROM release r JOIN model_version v ON v.model = r.model AND v.number = r.version
  WHERE v.deleted_at IS NULL
    AND NOT EXISTS (SELECT FROM release_deletion d WHERE d.model = r.model AND d.number = r.number)
) u
WHERE starts_with(u.feature_set, $1) AND (u.model, u.number, u.feature_set) > ($2, $3, $4)
ORDER BY u.model, u.number, u.feature_set LIMIT $5
"""
MOVE_VERSION = """
UPDATE model_version SET stage = $3, promoted_at = $4, promoted_by = $5
WHERE model = $1 AND number = $2 AND stage = $6 RETURNING 1
"""
SELECT_CHAMPION = (
    f"SELECT {VERSION_COLUMNS} FROM model_version v WHERE v.model = $1 AND v.stage = 'PRODUCTION'"
)
PRODUCTION_VERSIONS = f"""
SELECT m.name AS wanted, {LISTED_COLUMNS}
FROM model m
LEFT JOIN model_version v ON v.model = m.name AND v.stage = 'PRODUCTION' AND v.deleted_at IS NULL
WHERE m.name = ANY($1::text[]) AND m.deleted_at IS NULL
"""
MARK_STORED = """
UPDATE artifact SET stored = true WHERE model = $1 AND version = $2 AND name = $3 AND sha256 = $4 RETURNING 1
"""
RECORD_CHECK = "UPDATE model_version SET check_problems = $3::text::jsonb WHERE model = $1 AND number = $2"
HAS_DEPENDENTS = """
SELECT EXISTS (
    SELECT FROM release r WHERE r.model = $1 AND r.version = $2
      AND NOT EXISTS (SELECT FROM release_deletion d WHERE d.model = r.model AND d.number = r.number)
  )
  OR EXISTS (SELECT FROM model_alias a WHERE a.model = $1 AND a.version = $2)
"""
DIGEST_STORED = "SELECT 1 FROM artifact WHERE sha256 = $1 AND stored LIMIT 1"

# ------------------------------------------------------------------------------------------------- releases
INSERT_RELEASE = """
INSERT INTO release (model, number, version, feature_set, body, created_at, created_by)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6, $7)
"""
_RELEASE = """
SELECT r.model, r.number, r.version, r.feature_set, r.body::text AS body, r.created_at, r.created_by
FROM release r
WHERE NOT EXISTS (SELECT FROM release_deletion d WHERE d.model = r.model AND d.number = r.number)
  AND r.model = $1
"""
SELECT_RELEASE = _RELEASE + "AND r.number = $2"
LIST_RELEASES = _RELEASE + "AND r.number < $2 ORDER BY r.number DESC LIMIT $3"
RELEASES_OF = _RELEASE + "AND r.version = $2 ORDER BY r.number DESC LIMIT $3"

# --------------------------------------------------------------------------------------- evidence and audit
INSERT_EVIDENCE = """
INSERT INTO evidence (model, number, kind, version, numbers, findings, passed, created_at, producer, champion,
  rollout, step, policy)
VALUES ($1, $2, $3, $4, $5::text::jsonb, $6::text::jsonb, $7, $8, $9, $10, $11, $12, $13)
"""
_EVIDENCE = """
SELECT model, number, kind, version, numbers::text AS numbers, findings::text AS findings, passed, created_at,
       producer, champion, rollout, step, policy
FROM evidence
"""
WHOLE_EVIDENCE = _EVIDENCE + "WHERE model = $1 AND number > $2 ORDER BY number LIMIT 1000"
SELECT_EVIDENCE = _EVIDENCE + "WHERE model = $1 AND number = $2"
NEWEST_EVIDENCE_OF = (
    _EVIDENCE + "WHERE model = $1 AND version = $2 AND kind = $3 ORDER BY number DESC LIMIT 1"
)
LAST_EVIDENCE = "SELECT last_evidence FROM model WHERE name = $1"
INSERT_APPROVAL = """
INSERT INTO approval (model, version, approver, reason, approved_at) VALUES ($1, $2, $3, $4, $5)
"""
LIST_APPROVALS = """
SELECT model, version, approver, reason, approved_at FROM approval
WHERE model = $1 AND version = $2 ORDER BY approved_at, approver
"""
REGISTRAR = "SELECT actor FROM audit WHERE model = $1 AND subject = $2 AND action = 'REGISTER' LIMIT 1"
AUDIT_HEAD = "SELECT last_audit, audit_head FROM model WHERE name = $1"
INSERT_AUDIT = """
WITH head AS (UPDATE model SET last_audit = $2, audit_head = $11 WHERE name = $1)
INSERT INTO audit (model, sequence, at, actor, action, subject, from_state, to_state, reason, evidence, hash,
  evidence_hash)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
LIST_AUDIT = "SELECT * FROM audit WHERE model = $1 AND sequence < $2 ORDER BY sequence DESC LIMIT $3"
AUDITED_MODELS = "SELECT name, last_audit, audit_head, last_evidence FROM model ORDER BY name"
WHOLE_AUDIT = "SELECT * FROM audit WHERE model = $1 AND sequence > $2 ORDER BY sequence LIMIT 1000"

# ------------------------------------------------------------------------------------------------- rollouts
INSERT_ROLLOUT = """
INSERT INTO rollout (model, number, champion, challenger, state, resume_to, step, challenger_percent, policy,
  step_started_at, last_decision, reason, created_at, created_by, ended_at, generation, step_entered_at,
  step_ran_seconds)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11, $12, $13, $14, $15, $16, $17, $18)
"""
UPDATE_ROLLOUT = """
UPDATE rollout SET state = $3, resume_to = $4, step = $5, challenger_percent = $6, step_started_at = $7,
  last_decision = $8, reason = $9, ended_at = $10, generation = $11, step_entered_at = $12,
  step_ran_seconds = $13, alerted_at = $14, evidence_count = $15, evidence_grew_at = $16
WHERE model = $1 AND number = $2
"""
NOTE_ALERT = "UPDATE rollout SET alerted_at = $3 WHERE model = $1 AND number = $2"
NOTE_HOLD = """
UPDATE rollout SET last_decision = 'HOLD', reason = $4, step_started_at = $5, alerted_at = $6,
  evidence_count = $7, evidence_grew_at = $8
WHERE model = $1 AND number = $2 AND step = $3 AND ended_at IS NULL
"""
_ROLLOUT = """
SELECT o.model, o.number, o.champion, o.challenger, r.version AS challenger_version, o.state, o.resume_to,
       o.step, o.challenger_percent, o.policy::text AS policy, o.step_started_at, o.last_decision, o.reason,
       o.generation, o.step_entered_at, o.step_ran_seconds, o.alerted_at, o.evidence_count,
       o.evidence_grew_at, o.created_at, o.created_by, o.ended_at,
       (SELECT coalesce(json_agg(
          json_build_array(h.state, h.challenger_percent, h.entered_at, h.reason, h.evidence) ORDER BY h.step
        ), '[]')::text
        FROM rollout_step h WHERE h.model = o.model AND h.rollout = o.number) AS history
FROM rollout o JOIN release r ON r.model = o.model AND r.number = o.challenger
"""
SELECT_ROLLOUT = _ROLLOUT + "WHERE o.model = $1 AND o.number = $2"
SELECT_ACTIVE_ROLLOUT = _ROLLOUT + "WHERE o.model = $1 AND o.ended_at IS NULL"
LIST_UNDECIDED_ROLLOUTS = _ROLLOUT + "WHERE o.ended_at IS NULL AND o.state <> 'PAUSED' ORDER BY o.model"
LIST_PAUSED_ROLLOUTS = (
    _ROLLOUT
    + """
WHERE o.ended_at IS NULL AND o.state = 'PAUSED' AND NOT EXISTS (
    SELECT FROM rollout_step h WHERE h.model = o.model AND h.rollout = o.number AND h.entered_at > $1
  )
ORDER BY o.model
"""
)
LIST_ROLLOUTS = _ROLLOUT + "WHERE o.model = $1 AND o.number < $2 ORDER BY o.number DESC LIMIT $3"
INSERT_ROLLOUT_STEP = """
INSERT INTO rollout_step (model, rollout, step, state, challenger_percent, entered_at, reason, evidence)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

# -------------------------------------------------------------------------------------------------- serving
SELECT_ROUTING = """
SELECT generation, champion, challenger, rollout, shadow_percent, challenger_percent,
  variants::text AS variants
FROM serving WHERE model = $1
"""
UPSERT_ROUTING = """
INSERT INTO serving (model, generation, champion, challenger, rollout, shadow_percent, challenger_percent,
  variants)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::jsonb)
ON CONFLICT (model) DO UPDATE
SET generation = $2, champion = $3, challenger = $4, rollout = $5, shadow_percent = $6,
    challenger_percent = $7, variants = $8::text::jsonb
"""
NOTIFY_SERVING = "SELECT pg_notify('flywheel_serving', $1)"
GENERATIONS = "SELECT model, generation FROM serving"
ALL_SPANS = """
SELECT release, version, since, until, reason, by_rollback FROM serving_span
WHERE model = $1 ORDER BY position
"""
LIST_SPANS = """
SELECT position, release, version, since, until, reason, by_rollback FROM serving_span
WHERE model = $1 AND position < $2 ORDER BY position DESC LIMIT $3
"""
SPAN_AT = """
SELECT release, version, since, until, reason, by_rollback FROM serving_span
WHERE model = $1 AND since <= $2 AND (until IS NULL OR until > $2) ORDER BY position DESC LIMIT 1
"""
CLOSE_SPAN = "UPDATE serving_span SET until = $2 WHERE model = $1 AND until IS NULL"
OPEN_SPAN = """
INSERT INTO serving_span (model, position, release, version, since, reason, by_rollback)
VALUES ($1, (SELECT coalesce(max(position), 0) + 1 FROM serving_span WHERE model = $1), $2, $3, $4, $5, $6)
"""

# ------------------------------------------------------------------------------------------------- gateways
# The database's clock measures heartbeats, so that replicas agree on which gateways are live.
HEARTBEAT = """
INSERT INTO gateway (id, last_heartbeat, observed) VALUES ($1, clock_timestamp(), $2::text::jsonb)
ON CONFLICT (id) DO UPDATE SET last_heartbeat = clock_timestamp(), observed = $2::text::jsonb
"""
SET_GATEWAY_PROJECT = """
INSERT INTO gateway_project (gateway, project) VALUES ($1, $2)
ON CONFLICT (gateway) DO UPDATE SET project = $2, watched_at = clock_timestamp()
"""
REMOVE_GATEWAY = """
WITH project AS (DELETE FROM gateway_project WHERE gateway = $1) DELETE FROM gateway WHERE id = $1
"""
LIST_GATEWAYS = """
SELECT id, coalesce(p.project, '') AS project, last_heartbeat,
       last_heartbeat >= clock_timestamp() - interval '1 second' AS live, observed::text AS observed
FROM gateway g LEFT JOIN gateway_project p ON p.gateway = g.id
WHERE last_heartbeat >= clock_timestamp() - $1 * interval '1 second' AND id > $2 ORDER BY id LIMIT $3
"""
DELETE_OLD_GATEWAYS = """
WITH old AS (DELETE FROM gateway WHERE last_heartbeat < clock_timestamp() - interval '1 day')
DELETE FROM gateway_project p
WHERE watched_at < clock_timestamp() - interval '1 day'
  AND NOT EXISTS (
    SELECT FROM gateway g
    WHERE g.id = p.gateway AND g.last_heartbeat >= clock_timestamp() - interval '1 day'
  )
"""
