"""The SQL statements of webhooks; `flywheel_common.webhooks` has those of the tables that it sends from."""

from __future__ import annotations

SUBSCRIBE = """
INSERT INTO webhook_subscription (project, webhook, model, events, created_at, created_by)
VALUES ($1, $2, $3, $4, $5, $6)
"""
_WEBHOOK = """
SELECT 'projects/' || w.project || '/webhooks/' || w.id AS name, w.url, w.secret, s.model, s.events,
  s.created_at, s.created_by
FROM webhook w JOIN webhook_subscription s ON s.project = w.project AND s.webhook = w.id
"""
SELECT_WEBHOOK = _WEBHOOK + "WHERE w.project = $1 AND w.id = $2"
LIST_WEBHOOKS = _WEBHOOK + "WHERE w.project = $1 AND w.id > $2 ORDER BY w.id LIMIT $3"
# In the order of the ids, so that two transactions never wait for each other.
ADD_DELIVERIES = """
INSERT INTO webhook_delivery (project, webhook, event_id, body)
SELECT s.project, s.webhook, $3, $4 FROM webhook_subscription s
WHERE s.project = split_part($1, '/', 2) AND s.model IN ('', $1) AND s.events && $2::text[]
ORDER BY s.webhook ON CONFLICT DO NOTHING
"""
LIST_DELIVERIES = """
SELECT serial AS number, event_id, convert_from(body, 'UTF8') AS body, attempts, error, created_at, ended_at
FROM webhook_delivery WHERE project = $1 AND webhook = $2 AND serial < $3 ORDER BY serial DESC LIMIT $4
"""
