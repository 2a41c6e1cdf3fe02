"""Creates and deletes webhooks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from urllib.parse import urlsplit

from flywheel_common.clock import Clock
from flywheel_common.webhooks.errors import InvalidWebhook, UnknownWebhook
from flywheel_common.webhooks.webhook import Webhook as SentTo
from flywheel_registry.webhooks.errors import WebhookExists, WebhookHostNotAllowed
from flywheel_registry.webhooks.ports import WebhookRecords
from flywheel_registry.webhooks.webhook import Webhook, WebhookName

FORMAT = "registry"
"""The form of the bodies: the JSON object of `payload`."""
ANY_HOST = "*"


class WebhookCatalog:
    """Creates and deletes webhooks. Only addresses on `allowed_hosts` are told anything."""

    def __init__(self, clock: Clock, allowed_hosts: Collection[str]) -> None:
        self._clock = clock
        self._allowed = {host.lower() for host in allowed_hosts}

    async def create(self, records: WebhookRecords, webhook: Webhook, by: str) -> Webhook:
        """Create a webhook. Raises InvalidWebhook, WebhookHostNotAllowed, WebhookExists."""
        self._check(webhook)
        added = replace(webhook, created_at=self._clock.now(), created_by=by)
        if not await records.add_webhook(added):
            raise WebhookExists(f"{webhook.name} exists: delete it first, or choose another id.")
        return added

    async def delete(self, records: WebhookRecords, name: WebhookName) -> None:
        """Delete a webhook. Raises UnknownWebhook."""
        await records.delete_webhook((await find_webhook(records, name)).name)

    def _check(self, webhook: Webhook) -> None:
        SentTo(webhook.project, webhook.id, webhook.url, FORMAT, webhook.secret).checked(frozenset({FORMAT}))
        if not webhook.secret:
            raise InvalidWebhook("The webhook has no secret: without one its bodies could not be trusted.")
        if any(ord(character) <= 32 for character in webhook.url):
            raise InvalidWebhook("The URL has a space or a control character: encode it.")
        if webhook.model and not webhook.model.startswith(f"projects/{webhook.project}/"):
            raise InvalidWebhook(f"{webhook.model} is not a model of the project {webhook.project}.")
        host = (urlsplit(webhook.url).hostname or "").lower()
        if ANY_HOST not in self._allowed and host not in self._allowed:
            raise WebhookHostNotAllowed(f"Webhooks to {host} are not allowed.", host=host)


async def find_webhook(records: WebhookRecords, name: WebhookName) -> Webhook:
    """Return the webhook. Raises UnknownWebhook."""
    found = await records.webhook(str(name))
    if found is None:
        raise UnknownWebhook(f"Webhook {name} does not exist: list the webhooks of the project.")
    return found
