"""Models, versions and releases: creating, changing, listing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flywheel_common.clock import Clock
from flywheel_common.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument
from flywheel_common.paging import Page, cut, decode_token, page_size
from flywheel_registry.absent import find_model, find_version, lock_model
from flywheel_registry.audit import AuditEntry
from flywheel_registry.changes import Changes
from flywheel_registry.declaration import check_release, check_version
from flywheel_registry.names import VersionName
from flywheel_registry.ports import Records
from flywheel_registry.resources import ArtifactState, FeatureUse, Model, ModelVersion, Release, Rollout
from flywheel_registry.serving import Span
from flywheel_registry.stages import Stage

PAGE = 100
"""Page size when a request names none."""
NEWEST = 2**31 - 1
MUTABLE = ("description", "owner", "tags", "gate_policy", "rollout_policy")


def require_ready(version: ModelVersion) -> None:
    """Raises FailedPrecondition ARTIFACTS_PENDING naming the missing files."""
    if version.artifact_state is not ArtifactState.READY:
        missing = ", ".join(a.name for a in version.artifacts if not a.stored)
        raise FailedPrecondition(
            f"Bytes of {version.name} are missing: upload {missing} first.", reason="ARTIFACTS_PENDING"
        )


class Catalog:
    """`max_artifact_bytes` bounds one declared file."""

    def __init__(self, clock: Clock, max_artifact_bytes: int) -> None:
        self._clock = clock
        self._max_artifact_bytes = max_artifact_bytes

    async def create_model(self, records: Records, model: Model, by: str) -> Model:
        """Raises AlreadyExists MODEL_EXISTS, InvalidArgument INVALID_POLICY."""
        model.gate_policy.check()
        model.rollout_policy.check()
        if not await records.add_model(replace(model, created_at=self._clock.now())):
            raise AlreadyExists(
                f"Model {model.name} exists: use it or choose another id.",
                reason="MODEL_EXISTS",
                model=model.name,
            )
        await Changes(records, model.name, self._clock.now(), by).note("CREATE", model.name)
        return await find_model(records, model.name)

    async def update_model(
        self, records: Records, wanted: Model, fields: Sequence[str], etag: str, by: str
    ) -> Model:
        """Changes `fields` (none named: all that users may set). Raises Aborted ETAG_MISMATCH, InvalidArgument."""
        unknown = [field for field in fields if field not in MUTABLE]
        if unknown:
            raise InvalidArgument(
                f"update_mask names {unknown[0]!r}; only {', '.join(MUTABLE)} can change.",
                reason="INVALID_FIELD_MASK",
            )
        await lock_model(records, wanted.name)
        current = await find_model(records, wanted.name)
        if etag and etag != current.etag:
            raise Aborted(
                "The model was changed since it was read: read it again and retry.", reason="ETAG_MISMATCH"
            )
        changed = replace(current, **{field: getattr(wanted, field) for field in fields or MUTABLE})
        changed.gate_policy.check()
        changed.rollout_policy.check()
        await records.change_model(changed)
        await Changes(records, wanted.name, self._clock.now(), by).note(
            "UPDATE", wanted.name, reason=", ".join(fields or MUTABLE)
        )
        return await find_model(records, wanted.name)

    async def list_models(
        self, records: Records, project: str, filter_: str, size: int, token: str
    ) -> Page[Model]:
        """By name. The filter knows `tag:key=value`, joined by AND."""
        query = f"models {project} {filter_}"
        conditions = parse_filter(filter_, ())
        after = decode_token(token, query=query)
        size = page_size(size, default=PAGE)
        found = await records.models(
            project, str(after[0]).replace("\0", "") if after else "", conditions.tags, size + 1
        )
        return cut(found, size, lambda m: [m.name], query=query)

    async def create_version(self, records: Records, version: ModelVersion, by: str) -> ModelVersion:
        """PENDING until its files are uploaded. Raises InvalidArgument, UnknownModel."""
        check_version(version, self._max_artifact_bytes)
        if version.parent_version:
            VersionName.parse(version.parent_version)
        await lock_model(records, version.model)
        now = self._clock.now()
        clean = tuple(replace(artifact, stored=False) for artifact in version.artifacts)
        added = await records.add_version(
            replace(
                version,
                stage=Stage.NONE,
                artifacts=clean,
                registered_at=now,
                registered_by=version.registered_by or by,
                promoted_at=None,
                promoted_by="",
            )
        )
        await Changes(records, added.model, now, by).note(
            "REGISTER", added.name, to_state=Stage.NONE, reason=added.description
        )
        return added

    async def list_versions(
        self, records: Records, model: str, filter_: str, size: int, token: str
    ) -> Page[ModelVersion]:
        """Newest first. The filter knows `stage=PRODUCTION` and `tag:key=value`, joined by AND."""
        conditions = parse_filter(filter_, ("stage",))
        query = f"versions {model} {filter_}"
        before, size = _before(token, query), page_size(size, default=PAGE)
        found = await records.versions(model, before, conditions.stage, conditions.tags, size + 1)
        return cut(found, size, lambda v: [v.number], query=query)

    async def list_feature_uses(
        self, records: Records, project: str, size: int, token: str
    ) -> Page[FeatureUse]:
        """By model, version and set. Raises InvalidArgument INVALID_PAGE_TOKEN, INVALID_PAGE_SIZE."""
        query = f"feature uses {project}"
        after, size = _use_after(token, query), page_size(size, default=PAGE)
        found = await records.feature_uses(f"projects/{project}/featureSets/", after, size + 1)
        return cut(found, size, lambda u: [u.model, u.number, u.feature_set], query=query)

    async def create_release(self, records: Records, release: Release, by: str) -> Release:
        """Raises InvalidArgument, UnknownModelVersion, FailedPrecondition ARTIFACTS_PENDING, REJECTED_VERSION."""
        check_release(release)
        await lock_model(records, release.model)
        version = await find_version(
            records, VersionName.parse(f"{release.model}/versions/{release.version}")
        )
        require_ready(version)
        if version.stage is Stage.REJECTED:
            raise FailedPrecondition(
                f"{version.name} is REJECTED for ever: release another version.", reason="REJECTED_VERSION"
            )
        now = self._clock.now()
        bundle = replace(
            release, feature_set=release.feature_set or version.feature_set, created_at=now, created_by=by
        )
        added = await records.add_release(bundle)
        await Changes(records, added.model, now, by).note("RELEASE", added.name, reason=f"of {version.name}")
        return added

    async def list_releases(self, records: Records, model: str, size: int, token: str) -> Page[Release]:
        """Newest first."""
        query = f"releases {model}"
        before, size = _before(token, query), page_size(size, default=PAGE)
        return cut(await records.releases(model, before, size + 1), size, lambda r: [r.number], query=query)

    async def list_rollouts(self, records: Records, model: str, size: int, token: str) -> Page[Rollout]:
        """Newest first."""
        query = f"rollouts {model}"
        before, size = _before(token, query), page_size(size, default=PAGE)
        return cut(await records.rollouts(model, before, size + 1), size, lambda r: [r.number], query=query)

    async def list_spans(self, records: Records, model: str, size: int, token: str) -> Page[tuple[int, Span]]:
        """Newest first."""
        query = f"spans {model}"
        before, size = _before(token, query), page_size(size, default=PAGE)
        return cut(await records.page_of_spans(model, before, size + 1), size, lambda s: [s[0]], query=query)

    async def list_audit(self, records: Records, model: str, size: int, token: str) -> Page[AuditEntry]:
        """Newest first."""
        query = f"audit {model}"
        before, size = _before(token, query), page_size(size, default=PAGE)
        return cut(await records.audit(model, before, size + 1), size, lambda e: [e.sequence], query=query)


class Filter:
    """A parsed filter: an optional stage and tags that must all be there."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.tags: dict[str, str] = {}


def parse_filter(text: str, fields: Sequence[str]) -> Filter:
    """`stage=PRODUCTION AND tag:team=ops`. Raises InvalidArgument INVALID_FILTER."""
    result = Filter()
    for part in (p.strip() for p in text.split(" AND ") if p.strip()):
        left, equals, value = part.partition("=")
        left, value = left.strip(), value.strip()
        if equals and left.startswith("tag:") and len(left) > 4:
            result.tags[left[4:]] = value
        elif equals and left == "stage" and "stage" in fields and value in Stage.__members__:
            result.stage = Stage(value)
        else:
            known = "`tag:key=value`" + "".join(f", `{field}=…`" for field in fields)
            raise InvalidArgument(
                f"The filter does not know {part[:80]!r}: use {known}, joined by AND.",
                reason="INVALID_FILTER",
            )
    return result


def _use_after(token: str, query: str) -> tuple[str, int, str]:
    match decode_token(token, query=query):
        case None:
            return "", 0, ""
        case [str(model), int(number), str(feature_set)] if "\0" not in model + feature_set:
            return model, max(0, min(number, NEWEST)), feature_set
    raise InvalidArgument(
        "page_token does not belong to this request.", reason="INVALID_PAGE_TOKEN", field="page_token"
    )


def _before(token: str, query: str) -> int:
    key = decode_token(token, query=query)
    if key is None:
        return NEWEST
    if len(key) != 1 or not isinstance(key[0], int) or not 0 < key[0] <= NEWEST:
        raise InvalidArgument(
            "page_token does not belong to this request.", reason="INVALID_PAGE_TOKEN", field="page_token"
        )
    return key[0]
