"""What the processes of a join on a cluster may do on the object store."""

from __future__ import annotations

from flywheel_common.granted.access import Access
from flywheel_feature.offline.partitioned.spec import ERROR, PROGRESS, RESULT, PartitionSpec


def access_of_join(folder: str, spec: PartitionSpec | None) -> Access:
    """The access to the files of the spec and to the working files below `folder` (`s3://bucket/key`).

    The processes read the spec but cannot change it: it decides what the next attempt may read. A join
    without a spec can only report that.
    """
    written = [ERROR, PROGRESS, RESULT]
    if spec is None:
        return Access(reads=(folder,), writes=tuple(f"{folder}/{key}" for key in written))
    written += ["spine", "parts", "late", *(f"view-{view:03d}" for view in range(len(spec.histories)))]
    tasks = (*spec.spine, *(task for history in spec.histories for task in history.pieces))
    files = dict.fromkeys(piece.uri for pieces in tasks for piece in pieces)
    return Access(
        reads=(folder, *files), writes=(*(f"{folder}/{key}" for key in written), spec.uri.rstrip("/"))
    )
