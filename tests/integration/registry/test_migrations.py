"""Rows of versions from before signatures had tensors and an output."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from flywheel_common.postgres.migrate import migrate
from flywheel_common.postgres.pool import create_pool
from flywheel_common.signature import FLOAT32, InputSpec, OutputKind, Signature
from flywheel_common.tensors import Tensor
from flywheel_protos.events.v1.event_pb2 import Event
from flywheel_registry.models.version import ArtifactState, GoldenRows
from flywheel_registry.server import MIGRATIONS
from flywheel_registry.store.postgres.store import PostgresStore

INSERT_MODEL = """
INSERT INTO model (name, project, description, owner, tags, gate_policy, rollout_policy, created_at)
VALUES ('projects/p/models/m', 'p', '', '', '{}', '{}', '{}', now())
"""
INSERT_VERSION = """
INSERT INTO model_version (model, number, stage, training_run, framework, metrics, feature_set,
  training_dataset, signature, golden_row_count, golden_inputs, golden_scores, golden_tolerance, tags,
  description, parent_version, cause_alert, pipeline_run, registered_at, registered_by)
VALUES ('projects/p/models/m', $1, 'NONE', '', '', '{}', '', '', $2::text::jsonb, $3, $4, $5, 0.5, '{}',
  '', '', '', '', now(), 'ann')
"""
INSERT_ARTIFACT = """
INSERT INTO artifact (model, version, name, position, size_bytes, sha256, stored)
VALUES ('projects/p/models/m', $1, 'model.onnx', 0, 1, repeat('a', 64), $2)
"""


async def test_old_versions_get_the_plain_signature_and_golden_tensors(
    empty_database: str, tmp_path: Path
) -> None:
    before = tmp_path / "flywheel_registry" / "migrations"
    before.mkdir(parents=True)
    shutil.copy(MIGRATIONS / "0001_registry.sql", before)
    inputs, scores = struct.pack("<4f", 1, 2, 3, 4), struct.pack("<2f", 0.25, 0.75)
    async with create_pool(empty_database) as pool:
        await migrate(pool, before)
        await pool.execute(INSERT_MODEL)
        await pool.execute(INSERT_VERSION, 1, '[["v__a", 4, []], ["v__b", 5, ["x"]]]', 2, inputs, scores)
        await pool.execute(INSERT_VERSION, 2, "[]", 0, b"", b"")
        await pool.execute(INSERT_ARTIFACT, 1, True)
        await pool.execute(INSERT_ARTIFACT, 2, False)
        await migrate(pool, MIGRATIONS)
        async with PostgresStore(pool, lambda event, at: ("topic", Event())).reading() as records:
            first = await records.version("projects/p/models/m", 1)
            second = await records.version("projects/p/models/m", 2)
    assert first is not None
    assert second is not None
    assert Signature(inputs=(InputSpec("v__a", 4), InputSpec("v__b", 5, ("x",)))) == first.signature
    assert OutputKind.BINARY is first.signature.output.kind
    golden = Tensor("INPUT", FLOAT32, (2, 2), inputs), Tensor("SCORE", FLOAT32, (2,), scores)
    assert GoldenRows(golden[:1], golden[1], 0.5) == first.golden_rows
    assert ArtifactState.READY is first.artifact_state
    assert (Signature(), GoldenRows(tolerance=0.5)) == (second.signature, second.golden_rows)
    assert ArtifactState.PENDING is second.artifact_state
