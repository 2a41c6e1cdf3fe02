"""The SQL statements of webhooks and their deliveries."""

from __future__ import annotations

INSERT_WEBHOOK = """
INSERT INTO webhook (name, project, url, model, events, secret, created_at, created_by)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING RETURNING 1
"""
_WEBHOOK = "SELECT name, url, model, events, secret, created_at, created_by FROM webhook "
SELECT_WEBHOOK = _WEBHOOK + "WHERE name = $1"
LIST_WEBHOOKS = _WEBHOOK + "WHERE project = $1 AND name > $2 ORDER BY name LIMIT $3"
DELETE_WEBHOOK = "DELETE FROM webhook WHERE name = $1"
ADD_DELIVERIES = """
INSERT INTO webhook_delivery (webhook, body)
SELECT w.name, $3 FROM webhook w
WHERE w.project = split_part($1, '/', 2) AND w.model IN ('', $1) AND $2 = ANY(w.events)
"""
LIST_DELIVERIES = """
SELECT id, webhook, body, try_count, last_result, created_at, delivered_at, given_up_at FROM webhook_delivery
WHERE webhook = $1 AND id < $2 ORDER BY id DESC LIMIT $3
"""
CLAIM = """
WITH due AS (
  SELECT id FROM webhook_delivery
  WHERE delivered_at IS NULL AND given_up_at IS NULL AND next_try_at <= clock_timestamp()
  ORDER BY next_try_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE webhook_delivery d
SET try_count = try_count + 1, next_try_at = clock_timestamp() + $2 * interval '1 second'
FROM due, webhook w WHERE d.id = due.id AND w.name = d.webhook
RETURNING d.id, w.url, w.secret, d.body, d.try_count
"""
DELIVERED = "UPDATE webhook_delivery SET delivered_at = clock_timestamp(), last_result = $2 WHERE id = $1"
FAILED = """
UPDATE webhook_delivery SET last_result = $2,
  next_try_at = clock_timestamp() + coalesce($3::double precision, 0) * interval '1 second',
  given_up_at = CASE WHEN $3::double precision IS NULL THEN clock_timestamp() END
WHERE id = $1
"""
DELETE_OLD = """
DELETE FROM webhook_delivery
WHERE coalesce(delivered_at, given_up_at) < clock_timestamp() - interval '7 days'
"""
