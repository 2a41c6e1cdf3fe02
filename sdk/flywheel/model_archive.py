"""Export and import of models between installations, as one file.

An archive is a ZIP file with `manifest.json` (the model, and the SHA-256 of every other member), one JSON
file for each version, release, piece of evidence and audit entry, and the artifacts by their SHA-256.

Stages do not travel: what is imported passes the gates of its new installation. The history of the origin
does: every imported version has it as its artifact `origin.json`, with the audit and the evidence.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from flywheel.artifact_calls import ArtifactCalls
from flywheel.catalog_calls import CatalogCalls
from flywheel.connection import request_id
from flywheel.errors import FlywheelError
from flywheel.governance_calls import chain_faults, evidence_hash
from flywheel.paging import list_items
from flywheel_protos.registry.v1 import model_pb2, registry_pb2, search_pb2

FORMAT = 1
ORIGIN = "origin.json"
"""Artifact of an imported version that holds audit and evidence of its origin."""
MAX_JSON_BYTES = 64 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024


@dataclass
class Archive:
    """What an archive holds; the artifacts stay in the file."""

    model: model_pb2.Model
    versions: list[model_pb2.ModelVersion] = field(default_factory=list)
    releases: list[model_pb2.Release] = field(default_factory=list)
    evidence: list[model_pb2.Evidence] = field(default_factory=list)
    audit: list[model_pb2.AuditEntry] = field(default_factory=list)
    aliases: list[search_pb2.ModelAlias] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What is wrong with the audit of the origin; empty when chain and evidence are intact."""
        found = chain_faults(self.model.name, self.audit)
        known = {one.name: one for one in self.evidence}
        for entry in self.audit:
            if entry.evidence_hash:
                one = known.get(entry.evidence)
                if one is None or evidence_hash(one) != entry.evidence_hash:
                    found.append(f"{entry.evidence} is missing or was changed")
        return found


@dataclass(frozen=True)
class Imported:
    """Names of the imported versions and releases by their names in the archive."""

    model: str
    versions: dict[str, str]
    releases: dict[str, str]
    problems: dict[str, tuple[str, ...]]
    """Imported version → what the check of this installation found."""


class ArchiveCalls(CatalogCalls, ArtifactCalls):
    """Exports and imports models."""

    async def export_model(self, model: str, to: Path) -> Archive:
        """Writes a model with versions, releases, aliases, evidence, audit and artifacts to a file.

        The file appears when it is complete. Raises ValueError when the audit is not intact.
        """
        name = self.path("models", model)
        archive = await self._read(name)
        if faults := archive.faults():
            raise ValueError(f"The audit of {name} is not intact: {'; '.join(faults)}.")
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".export-") as folder:
            blobs: dict[str, Path] = {}
            for version in archive.versions:
                for artifact in version.artifacts:
                    if artifact.sha256 not in blobs:
                        path = Path(folder) / artifact.sha256
                        blobs[artifact.sha256] = await self.download_artifact(
                            version.name, artifact.name, path
                        )
            part = Path(folder) / "archive.zip"
            await asyncio.to_thread(_write, part, archive, blobs)
            await asyncio.to_thread(part.replace, to)
        return archive

    async def _read(self, name: str) -> Archive:
        def parent(kind: Any) -> Any:
            return kind(parent=name)

        registry = self.registry
        archive = Archive((await registry.GetModel(registry_pb2.GetModelRequest(name=name))).model)
        request = registry_pb2.ListModelVersionsRequest(parent=name, with_golden_rows=True)
        versions = (await list_items(registry.ListModelVersions, request, "model_versions")).items
        ready = (model_pb2.ARTIFACT_STATE_READY, model_pb2.ARTIFACT_STATE_INVALID)
        archive.versions = [v for v in reversed(versions) if v.artifact_state in ready]
        kept = {version.name for version in archive.versions}
        releases = await list_items(
            registry.ListReleases, parent(registry_pb2.ListReleasesRequest), "releases"
        )
        archive.releases = [r for r in reversed(releases.items) if r.model_version in kept]
        aliases = parent(search_pb2.ListModelAliasesRequest)
        archive.aliases = (await list_items(registry.ListModelAliases, aliases, "aliases")).items
        entries = parent(registry_pb2.ListAuditEntriesRequest)
        audit = (await list_items(registry.ListAuditEntries, entries, "entries")).items
        archive.audit = list(reversed(audit))
        for evidence in dict.fromkeys(entry.evidence for entry in archive.audit if entry.evidence):
            found = await registry.GetEvidence(registry_pb2.GetEvidenceRequest(name=evidence))
            archive.evidence.append(found.evidence)
        return archive

    async def import_model(self, file: Path, *, model: str = "") -> Imported:
        """Imports an archive as a new model, or as further versions of an existing one.

        `model` is the name here, by default that of the origin. Digests, chain and evidence are checked
        before anything is stored. Each version is checked as after an upload. Raises ValueError.
        """
        archive = await asyncio.to_thread(read_archive, file)
        name = self.path("models", model or archive.model.name.rpartition("/")[2])
        await self._ensure_model(name, archive.model)
        done = Imported(name, {}, {}, {})
        with tempfile.TemporaryDirectory(prefix="flywheel-import-") as folder:
            for version in archive.versions:
                await self._import_version(file, archive, version, done, Path(folder))
        for release in archive.releases:
            if release.model_version in done.versions:
                release_copy = _without(release, "name", "created_at", "created_by")
                here = done.versions[release.model_version]
                try:
                    done.releases[release.name] = (await self.release(here, release_copy)).name
                except FlywheelError as error:
                    done.problems[release.name] = (error.message,)
        for alias in archive.aliases:
            if alias.model_version in done.versions:
                short, here = alias.name.rpartition("/")[2], done.versions[alias.model_version]
                try:
                    await self.set_alias(short, here, reason=f"imported from {alias.name}")
                except FlywheelError as error:
                    done.problems[alias.name] = (error.message,)
        return done

    async def _ensure_model(self, name: str, origin: model_pb2.Model) -> None:
        parent, _, model_id = name.rpartition("/models/")
        wanted = model_pb2.Model(
            description=origin.description,
            owner=origin.owner,
            tags=origin.tags,
            gate_policy=origin.gate_policy,
            rollout_policy=origin.rollout_policy,
        )
        try:
            await self.registry.CreateModel(
                registry_pb2.CreateModelRequest(
                    parent=parent, model_id=model_id, model=wanted, request_id=request_id()
                )
            )
        except FlywheelError as error:
            if error.reason != "MODEL_EXISTS":
                raise

    async def _import_version(
        self, file: Path, archive: Archive, version: model_pb2.ModelVersion, done: Imported, folder: Path
    ) -> None:
        origin = _origin(archive, version)
        kept = [a for a in version.artifacts if a.name != ORIGIN]
        wanted = _without(
            version,
            "name",
            "stage",
            "artifact_state",
            "artifacts",
            "registered_at",
            "promoted_by",
            "promoted_at",
            "check_problems",
        )
        wanted.artifacts.extend(kept)
        sha256 = hashlib.sha256(origin).hexdigest()
        wanted.artifacts.add(name=ORIGIN, size_bytes=len(origin), sha256=sha256)
        wanted.tags["imported_from"] = version.name
        if version.parent_version in done.versions:
            wanted.parent_version = done.versions[version.parent_version]
        # Equal imports are one request: an import that broke off goes on.
        request = registry_pb2.CreateModelVersionRequest(
            parent=done.model, model_version=wanted, request_id=f"import-{sha256[:32]}-{_digest(done.model)}"
        )
        created = (await self.registry.CreateModelVersion(request)).model_version
        for artifact in kept:
            path = folder / "artifact"
            await asyncio.to_thread(_extract, file, artifact, path)
            await self.upload_artifact(created.name, artifact.name, path)
        checked = await self.upload_artifact(created.name, ORIGIN, origin)
        done.versions[version.name] = created.name
        if checked.check_problems:
            done.problems[created.name] = tuple(checked.check_problems)


def read_archive(file: Path) -> Archive:
    """The content of an archive, every member checked by its digest. Raises ValueError."""
    try:
        with zipfile.ZipFile(file) as opened:
            manifest = json.loads(_json(opened, "manifest.json"))
            if manifest.get("format") != FORMAT:
                raise ValueError(f"{file} has format {manifest.get('format')!r}, not {FORMAT}.")
            archive = Archive(json_format.ParseDict(manifest["model"], model_pb2.Model()))
            names = set(opened.namelist()) - {"manifest.json"}
            if names != set(manifest["members"]):
                raise ValueError(f"{file} has other members than its manifest lists.")
            for name, sha256 in manifest["members"].items():
                if _sha256(opened, name) != sha256:
                    raise ValueError(f"{name} of {file} is not what the manifest declares.")
                _take(archive, opened, name)
    except (zipfile.BadZipFile, KeyError, json_format.ParseError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no archive of a model: {error}") from error
    if faults := archive.faults():
        raise ValueError(f"The audit in {file} is not intact: {'; '.join(faults)}.")
    missing = {a.sha256 for v in archive.versions for a in v.artifacts} - {n[6:] for n in names}
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} artifacts.")
    return archive


KINDS: dict[str, tuple[str, type[Message]]] = {
    "versions": ("versions", model_pb2.ModelVersion),
    "releases": ("releases", model_pb2.Release),
    "evidence": ("evidence", model_pb2.Evidence),
    "audit": ("audit", model_pb2.AuditEntry),
    "aliases": ("aliases", search_pb2.ModelAlias),
}


def _take(archive: Archive, opened: zipfile.ZipFile, name: str) -> None:
    folder, _, rest = name.partition("/")
    if folder == "blobs":
        if rest != _sha256(opened, name):
            raise ValueError(f"{name} is not named after its SHA-256.")
        return
    attribute, kind = KINDS[folder]
    getattr(archive, attribute).append(json_format.Parse(_json(opened, name), kind()))


def _members(archive: Archive) -> Iterator[tuple[str, bytes]]:
    for folder, (attribute, _) in KINDS.items():
        for number, message in enumerate(getattr(archive, attribute), 1):
            yield f"{folder}/{number:08d}.json", json_format.MessageToJson(message).encode()


def _write(path: Path, archive: Archive, blobs: dict[str, Path]) -> None:
    members = {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in _members(archive):
            opened.writestr(name, data)
            members[name] = hashlib.sha256(data).hexdigest()
        for sha256, blob in sorted(blobs.items()):
            opened.write(blob, f"blobs/{sha256}", zipfile.ZIP_STORED)
            members[f"blobs/{sha256}"] = sha256
        manifest = {
            "format": FORMAT,
            "model": json_format.MessageToDict(archive.model),
            "members": members,
        }
        opened.writestr("manifest.json", json.dumps(manifest, indent=1))


def _extract(file: Path, artifact: model_pb2.Artifact, to: Path) -> None:
    with (
        zipfile.ZipFile(file) as opened,
        opened.open(f"blobs/{artifact.sha256}") as source,
        to.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, CHUNK_BYTES)


def _json(opened: zipfile.ZipFile, name: str) -> bytes:
    if opened.getinfo(name).file_size > MAX_JSON_BYTES:
        raise ValueError(f"{name} has more than {MAX_JSON_BYTES} bytes.")
    return opened.read(name)


def _sha256(opened: zipfile.ZipFile, name: str) -> str:
    sha = hashlib.sha256()
    with opened.open(name) as member:
        while data := member.read(CHUNK_BYTES):
            sha.update(data)
    return sha.hexdigest()


def _origin(archive: Archive, version: model_pb2.ModelVersion) -> bytes:
    """Audit and evidence of the origin, as canonical JSON: equal archives give equal bytes."""
    body = {
        "version": version.name,
        "audit": [json_format.MessageToDict(entry) for entry in archive.audit],
        "evidence": [json_format.MessageToDict(one) for one in archive.evidence],
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _without(message: Any, *fields: str) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    for name in fields:
        copy.ClearField(name)
    return copy


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
