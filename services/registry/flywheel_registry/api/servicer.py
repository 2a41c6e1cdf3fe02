"""The servicer of RegistryService."""

from __future__ import annotations

from typing import Any

from flywheel_common.postgres.transactions import Store
from flywheel_protos.registry.v1 import registry_pb2 as pb
from flywheel_protos.registry.v1.registry_pb2_grpc import RegistryServiceServicer
from flywheel_registry.api import convert_evidence, listing
from flywheel_registry.api.artifact_methods import ArtifactMethods
from flywheel_registry.api.deletion_methods import DeletionMethods
from flywheel_registry.api.governance_methods import GovernanceMethods
from flywheel_registry.api.model_methods import ModelMethods
from flywheel_registry.api.rollout_methods import RolloutMethods
from flywheel_registry.api.search_methods import SearchMethods
from flywheel_registry.api.serving_methods import ServingMethods
from flywheel_registry.artifacts.check import VersionCheck
from flywheel_registry.artifacts.parts import PartUploads
from flywheel_registry.artifacts.transfer import ArtifactTransfer
from flywheel_registry.collection.collection import ArtifactCollection
from flywheel_registry.deletion.deletion import Deletion
from flywheel_registry.evidence.lookups import find_evidence
from flywheel_registry.evidence.names import EvidenceName
from flywheel_registry.evidence.producers import EvidenceProducers
from flywheel_registry.gates.verdicts import ExperimentVerdicts
from flywheel_registry.models.alias_changes import Aliases
from flywheel_registry.models.catalog import ModelCatalog
from flywheel_registry.models.lookups import find_model
from flywheel_registry.models.names import ModelName
from flywheel_registry.models.production_reads import ProductionReads
from flywheel_registry.models.tags import VersionTags
from flywheel_registry.promotion.approvals import Approvals
from flywheel_registry.promotion.evaluation import EvaluationLog
from flywheel_registry.promotion.promotion import Promotions
from flywheel_registry.releases.catalog import ReleaseCatalog
from flywheel_registry.rollback.acknowledgement import Acknowledgements
from flywheel_registry.rollback.rollback import Rollbacks
from flywheel_registry.rollouts.lifecycle import RolloutLifecycle
from flywheel_registry.rollouts.ports import RolloutRecords
from flywheel_registry.rollouts.start import RolloutStart
from flywheel_registry.serving.desired_state_cache import DesiredStateCache
from flywheel_registry.serving.ports import Gateways
from flywheel_registry.serving.variants import Variants
from flywheel_registry.webhooks.catalog import WebhookCatalog


class RegistryServicer(
    ModelMethods,
    ArtifactMethods,
    RolloutMethods,
    ServingMethods,
    SearchMethods,
    DeletionMethods,
    GovernanceMethods,
    RegistryServiceServicer,
):
    """`flywheel.registry.v1.RegistryService`. `rollback_wait_seconds` is for callers without a deadline."""

    def __init__(
        self,
        *,
        store: Store[RolloutRecords],
        models: ModelCatalog,
        production: ProductionReads[pb.ListModelVersionsResponse],
        artifacts: ArtifactTransfer,
        checks: VersionCheck,
        promotions: Promotions,
        experiment_verdicts: ExperimentVerdicts,
        evaluations: EvaluationLog,
        producers: EvidenceProducers,
        releases: ReleaseCatalog,
        rollout_start: RolloutStart,
        rollout_lifecycle: RolloutLifecycle,
        rollbacks: Rollbacks,
        acknowledgements: Acknowledgements,
        desired_state: DesiredStateCache,
        gateways: Gateways,
        variants: Variants,
        aliases: Aliases,
        tags: VersionTags,
        deletion: Deletion,
        parts: PartUploads,
        collection: ArtifactCollection,
        idle_seconds: float,
        approvals: Approvals,
        webhooks: WebhookCatalog,
        rollback_wait_seconds: float,
    ) -> None:
        self._store = store
        self._models = models
        self._production = production
        self._artifacts = artifacts
        self._checks = checks
        self._promotions = promotions
        self._experiment_verdicts = experiment_verdicts
        self._evaluations = evaluations
        self._producers = producers
        self._releases = releases
        self._rollout_start = rollout_start
        self._rollout_lifecycle = rollout_lifecycle
        self._rollbacks = rollbacks
        self._acknowledgements = acknowledgements
        self._rollback_wait = rollback_wait_seconds
        self._desired_state = desired_state
        self._gateways = gateways
        self._variants = variants
        self._aliases = aliases
        self._tags = tags
        self._deletion = deletion
        self._parts = parts
        self._collection = collection
        self._idle_seconds = idle_seconds
        self._approvals = approvals
        self._webhooks = webhooks

    async def GetEvidence(self, request: pb.GetEvidenceRequest, context: Any) -> pb.GetEvidenceResponse:
        async with self._store.reading() as records:
            evidence = await find_evidence(records, EvidenceName.parse(request.name))
        return pb.GetEvidenceResponse(evidence=convert_evidence.evidence_to_proto(evidence))

    async def ListAuditEntries(
        self, request: pb.ListAuditEntriesRequest, context: Any
    ) -> pb.ListAuditEntriesResponse:
        parent = str(ModelName.parse(request.parent))
        async with self._store.reading() as records:
            page = await listing.list_audit(records, parent, request.page_size, request.page_token)
            # The audit of a deleted model stays readable, and every model has an entry.
            if not page.items:
                await find_model(records, parent)
        entries = map(convert_evidence.audit_to_proto, page.items)
        return pb.ListAuditEntriesResponse(entries=entries, next_page_token=page.next_page_token)
