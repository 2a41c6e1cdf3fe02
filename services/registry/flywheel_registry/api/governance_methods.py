"""The methods of RegistryService about approvals, the verification of audits, and webhooks."""

from __future__ import annotations

from typing import Any

from flywheel_common.grpc.auth import actor
from flywheel_common.names import check_id, parse_project
from flywheel_common.webhooks.errors import InvalidWebhook
from flywheel_protos.registry.v1 import approval_pb2
from flywheel_protos.registry.v1 import webhook_pb2 as pb
from flywheel_registry.api import listing
from flywheel_registry.api.convert import to_timestamp
from flywheel_registry.api.mutations import Mutations
from flywheel_registry.evidence.verification import verify_model_audit
from flywheel_registry.models.approval import Approval
from flywheel_registry.models.lookups import find_model, find_version
from flywheel_registry.models.names import ModelName, VersionName
from flywheel_registry.models.ports import ModelRecords
from flywheel_registry.promotion.approvals import Approvals
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.webhooks.catalog import WebhookCatalog, find_webhook
from flywheel_registry.webhooks.webhook import KINDS, WANTED_KINDS, Delivery, Webhook, WebhookName


class GovernanceMethods(Mutations):
    """Part of the servicer."""

    _approvals: Approvals
    _webhooks: WebhookCatalog

    async def ApproveModelVersion(
        self, request: approval_pb2.ApproveModelVersionRequest, context: Any
    ) -> approval_pb2.ApproveModelVersionResponse:
        name, answer = VersionName.parse(request.name), approval_pb2.ApproveModelVersionResponse

        async def effect(records: ModelRecords) -> approval_pb2.ApproveModelVersionResponse:
            approvals = await self._approvals.approve(records, name, request.reason, actor())
            return answer(approvals=map(_approval_to_proto, approvals))

        return await self._mutate("ApproveModelVersion", request, answer, effect)

    async def ListApprovals(
        self, request: approval_pb2.ListApprovalsRequest, context: Any
    ) -> approval_pb2.ListApprovalsResponse:
        name = VersionName.parse(request.parent)
        async with self._store.reading() as records:
            await find_version(records, name)
            page = await listing.list_approvals(records, name, request.page_size, request.page_token)
        return approval_pb2.ListApprovalsResponse(
            approvals=map(_approval_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def VerifyAudit(
        self, request: approval_pb2.VerifyAuditRequest, context: Any
    ) -> approval_pb2.VerifyAuditResponse:
        name = str(ModelName.parse(request.parent))
        # The lock of a transaction is not needed: entries that are added meanwhile lie behind the head.
        async with self._store.reading() as records:
            head = await records.audit_head(name)
            if head is None:
                await find_model(records, name)
                raise AssertionError("a model has a head")
            faults = await verify_model_audit(records, name, head)
        return approval_pb2.VerifyAuditResponse(
            faults=faults, head_sequence=head.sequence, head_hash=head.hash
        )

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: Any) -> pb.CreateWebhookResponse:
        webhook_id = check_id(request.webhook_id, "webhook_id")
        name = str(WebhookName(parse_project(request.parent), webhook_id))
        wanted = Webhook(
            name=name,
            url=request.webhook.url,
            secret=request.webhook.secret,
            model=str(ModelName.parse(request.webhook.model)) if request.webhook.model else "",
            events=tuple(_kind(number) for number in request.webhook.events) or KINDS,
        )

        async def effect(records: RolloutRecords) -> pb.CreateWebhookResponse:
            webhook = await self._webhooks.create(records, wanted, actor())
            return pb.CreateWebhookResponse(webhook=_webhook_to_proto(webhook))

        return await self._mutate("CreateWebhook", request, pb.CreateWebhookResponse, effect)

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Any) -> pb.DeleteWebhookResponse:
        name = WebhookName.parse(request.name)

        async def effect(records: RolloutRecords) -> pb.DeleteWebhookResponse:
            await self._webhooks.delete(records, name)
            return pb.DeleteWebhookResponse()

        return await self._mutate("DeleteWebhook", request, pb.DeleteWebhookResponse, effect)

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Any) -> pb.ListWebhooksResponse:
        project = parse_project(request.parent)
        async with self._store.reading() as records:
            page = await listing.list_webhooks(records, project, request.page_size, request.page_token)
        webhooks = map(_webhook_to_proto, page.items)
        return pb.ListWebhooksResponse(webhooks=webhooks, next_page_token=page.next_page_token)

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Any
    ) -> pb.ListWebhookDeliveriesResponse:
        name = WebhookName.parse(request.parent)
        async with self._store.reading() as records:
            await find_webhook(records, name)
            page = await listing.list_deliveries(records, str(name), request.page_size, request.page_token)
        deliveries = map(_delivery_to_proto, page.items)
        return pb.ListWebhookDeliveriesResponse(deliveries=deliveries, next_page_token=page.next_page_token)


def _approval_to_proto(value: Approval) -> approval_pb2.Approval:
    return approval_pb2.Approval(
        approver=value.approver, reason=value.reason, approved_at=to_timestamp(value.approved_at)
    )


def _kind(number: pb.WebhookEvent) -> str:
    text = pb.WebhookEvent.Name(number) if number in pb.WebhookEvent.values() else ""
    kind = text.removeprefix("WEBHOOK_EVENT_")
    if kind not in WANTED_KINDS:
        raise InvalidWebhook(f"Event {number} is no value of WebhookEvent that can be sent.")
    return kind


def _webhook_to_proto(value: Webhook) -> pb.Webhook:
    return pb.Webhook(
        name=value.name,
        url=value.url,
        model=value.model,
        events=[f"WEBHOOK_EVENT_{kind}" for kind in value.events],
        created_at=to_timestamp(value.created_at),
        created_by=value.created_by,
    )


def _delivery_to_proto(value: Delivery) -> pb.WebhookDelivery:
    return pb.WebhookDelivery(
        event_id=value.event_id,
        body=value.body,
        attempt_count=value.attempts,
        error=value.error,
        created_at=to_timestamp(value.created_at),
        ended_at=to_timestamp(value.ended_at),
    )
