"""Reads one page for each list method: page tokens and filters to port queries.

Raises InvalidPageToken and InvalidPageSize, and InvalidFilter where a method has a filter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from flywheel_common.errors import InvalidPageToken
from flywheel_common.paging import Page, cut, decode_token, page_size
from flywheel_registry.api.filters import Filter, parse_filter
from flywheel_registry.audit.chain import AuditEntry
from flywheel_registry.audit.ports import AuditRecords
from flywheel_registry.models.alias import Alias
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.model import Model
from flywheel_registry.models.names import VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.models.search import Position, VersionQuery
from flywheel_registry.models.version import FeatureUse, ModelVersion
from flywheel_registry.releases.ports import ReleaseRecords
from flywheel_registry.releases.release import Release
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.rollout import Rollout
from flywheel_registry.serving.gateways import Gateway
from flywheel_registry.serving.history import ServingSpan
from flywheel_registry.serving.ports import Gateways, ServingRecords
from flywheel_registry.stages.transitions import Stage
from flywheel_registry.webhooks.ports import WebhookRecords
from flywheel_registry.webhooks.webhook import Delivery, Webhook

Item = TypeVar("Item")

DEFAULT_PAGE_SIZE = 100
NEWEST = 2**31 - 1
"""A number above those of all resources: where pages from the newest on begin."""
_PRODUCTION = Filter(Stage.PRODUCTION, {})
GATEWAY_SECONDS = 3600.0
"""ListGateways shows gateways with a heartbeat in the last hour."""


async def list_models(
    records: ModelRecords, project: str, filter_: str, size: int, token: str
) -> Page[Model]:
    """Read models by name. The filter supports `tag:key=value`, joined by AND."""
    query = f"models {project} {filter_}"
    tags = parse_filter(filter_, ()).tags
    after, size = _text_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    found = await records.models(project, after, tags, size + 1)
    return cut(found, size, lambda m: [m.name], query=query)


async def list_versions(
    records: ModelRecords, model: str, filter_: str, size: int, token: str, *, golden: bool = False
) -> Page[ModelVersion]:
    """Read versions, newest first. The filter supports `stage=…` and `tag:key=value`, joined by AND.

    They have no golden rows unless `golden`.
    """
    wanted = parse_filter(filter_, ("stage",))

    async def read(before: int, limit: int) -> list[ModelVersion]:
        return await records.versions(model, before, wanted.stage, wanted.tags, limit, golden=golden)

    return await _newest_first(read, lambda v: v.number, f"versions {model} {filter_}", size, token)


def asks_for_production(filter_: str, size: int, token: str) -> bool:
    """Return whether a request for versions has the version in PRODUCTION, or none, as its only page."""
    page_size(size)
    return not token and parse_filter(filter_, ("stage",)) == _PRODUCTION


async def list_aliases(records: ModelRecords, model: str, size: int, token: str) -> Page[Alias]:
    """Read aliases by name."""
    query = f"aliases {model}"
    after, size = _text_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    return cut(await records.aliases(model, after, size + 1), size, lambda a: [a.alias], query=query)


async def search_versions(
    records: ModelRecords, query: VersionQuery, size: int, token: str
) -> Page[ModelVersion]:
    """Read the versions that match a search, in its order."""
    text, size = f"search {query}", page_size(size, default=DEFAULT_PAGE_SIZE)

    def key(version: ModelVersion) -> list[str | int | float]:
        at = query.position(version)
        value = at.value.isoformat() if isinstance(at.value, datetime) else at.value
        return [value, at.model, at.number]

    after = _position(decode_token(token, query=text))
    return cut(await records.search_versions(replace(query, after=after), size + 1), size, key, query=text)


async def list_approvals(records: ModelRecords, name: VersionName, size: int, token: str) -> Page[Approval]:
    """Read the approvals of a version, oldest first."""
    query = f"approvals {name}"
    after, size = _text_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    found = await records.approvals(name.parent, name.number)
    rest = [one for one in found if (one.approved_at.isoformat() + one.approver) > after]
    return cut(rest[: size + 1], size, lambda a: [a.approved_at.isoformat() + a.approver], query=query)


async def list_webhooks(records: WebhookRecords, project: str, size: int, token: str) -> Page[Webhook]:
    """Read webhooks by name."""
    query = f"webhooks {project}"
    after, size = _text_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    return cut(await records.webhooks(project, after, size + 1), size, lambda w: [w.id], query=query)


async def list_deliveries(records: WebhookRecords, webhook: str, size: int, token: str) -> Page[Delivery]:
    """Read deliveries, newest first."""

    async def read(before: int, limit: int) -> list[Delivery]:
        return await records.deliveries(webhook, before, limit)

    return await _newest_first(read, lambda d: d.number, f"deliveries {webhook}", size, token)


def _position(key: Sequence[object] | None) -> Position | None:
    match key:
        case None:
            return None
        case [str(time), str(model), int(number)] if "\0" not in model and 0 < number <= NEWEST:
            try:
                return Position(datetime.fromisoformat(time), model, number)
            except ValueError:
                raise _foreign_token() from None
        case [int() | float() as value, str(model), int(number)] if (
            "\0" not in model and 0 < number <= NEWEST
        ):
            return Position(float(value), model, number)
    raise _foreign_token()


async def list_feature_uses(records: ModelRecords, project: str, size: int, token: str) -> Page[FeatureUse]:
    """Read the uses of a project's feature sets, by model, version and feature set."""
    query = f"feature uses {project}"
    after, size = _feature_use_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    found = await records.feature_uses(f"projects/{project}/featureSets/", after, size + 1)
    return cut(found, size, lambda u: [u.model, u.number, u.feature_set], query=query)


async def list_releases(records: ReleaseRecords, model: str, size: int, token: str) -> Page[Release]:
    """Read releases, newest first."""

    async def read(before: int, limit: int) -> list[Release]:
        return await records.releases(model, before, limit)

    return await _newest_first(read, lambda r: r.number, f"releases {model}", size, token)


async def list_rollouts(records: RolloutRecords, model: str, size: int, token: str) -> Page[Rollout]:
    """Read rollouts, newest first."""

    async def read(before: int, limit: int) -> list[Rollout]:
        return await records.rollouts(model, before, limit)

    return await _newest_first(read, lambda r: r.number, f"rollouts {model}", size, token)


async def list_spans(
    records: ServingRecords, model: str, size: int, token: str
) -> Page[tuple[int, ServingSpan]]:
    """Read the serving history as (position, span), newest first."""

    async def read(before: int, limit: int) -> list[tuple[int, ServingSpan]]:
        return await records.page_of_spans(model, before, limit)

    return await _newest_first(read, lambda s: s[0], f"spans {model}", size, token)


async def list_audit(records: AuditRecords, model: str, size: int, token: str) -> Page[AuditEntry]:
    """Read audit entries, newest first."""

    async def read(before: int, limit: int) -> list[AuditEntry]:
        return await records.audit(model, before, limit)

    return await _newest_first(read, lambda e: e.sequence, f"audit {model}", size, token)


async def list_gateways(gateways: Gateways, size: int, token: str) -> Page[Gateway]:
    """Read the gateways of the last hour, by id."""
    query = "gateways"
    size, after = page_size(size, default=DEFAULT_PAGE_SIZE), _text_key(token, query)
    found = await gateways.recent(GATEWAY_SECONDS, after, size + 1)
    return cut(found, size, lambda gateway: [gateway.id], query=query)


async def _newest_first(
    read: Callable[[int, int], Awaitable[list[Item]]],
    key: Callable[[Item], int],
    query: str,
    size: int,
    token: str,
) -> Page[Item]:
    """Read a page of numbered items with `read(before, limit)`."""
    before, size = _number_key(token, query), page_size(size, default=DEFAULT_PAGE_SIZE)
    return cut(await read(before, size + 1), size, lambda item: [key(item)], query=query)


def _text_key(token: str, query: str) -> str:
    """Return the text after which the page begins. NUL, which PostgreSQL rejects, is removed."""
    key = decode_token(token, query=query)
    return str(key[0]).replace("\0", "") if key else ""


def _feature_use_key(token: str, query: str) -> tuple[str, int, str]:
    """Return the (model, number, feature set) after which the page begins."""
    match decode_token(token, query=query):
        case None:
            return "", 0, ""
        case [str(model), int(number), str(feature_set)] if "\0" not in model + feature_set:
            return model, max(0, min(number, NEWEST)), feature_set
    raise _foreign_token()


def _number_key(token: str, query: str) -> int:
    """Return the number before which the page begins."""
    match decode_token(token, query=query):
        case None:
            return NEWEST
        case [int(number)] if 0 < number <= NEWEST:
            return number
    raise _foreign_token()


def _foreign_token() -> InvalidPageToken:
    return InvalidPageToken(
        "page_token does not belong to this request: pass the next_page_token of the previous answer.",
        field="page_token",
    )
