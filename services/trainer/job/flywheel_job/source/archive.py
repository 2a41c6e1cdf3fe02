"""Unpacks source archives. An archive comes from a user and is not trusted until it is unpacked."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path, PurePosixPath

from flywheel_job.errors import InvalidSource

MAX_BYTES = 256 * 1024 * 1024
"""Largest total size of the unpacked files."""
MAX_FILES = 20_000


def unpack(archive: bytes, sha256: str, folder: Path) -> None:
    """Unpack a gzipped tar archive into `folder`, which must be empty.

    Raises InvalidSource if the digest differs, or a member is anything but a regular file or folder below
    `folder`, or the files are more or larger than allowed; nothing is written outside of `folder`.
    """
    found = hashlib.sha256(archive).hexdigest()
    if found != sha256:
        raise InvalidSource(f"The source archive has the digest {found}, but the job names {sha256}.")
    total = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
            for count, member in enumerate(tar, start=1):
                if count > MAX_FILES:
                    raise InvalidSource(f"The source archive has more than {MAX_FILES} files.")
                target = folder / _relative(member)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                total += member.size
                if total > MAX_BYTES:
                    raise InvalidSource(f"The files of the source archive are larger than {MAX_BYTES} bytes.")
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as file:
                    file.write(content.read())
                if member.mode & 0o100:
                    target.chmod(0o755)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InvalidSource(f"The source archive cannot be unpacked: {error}") from error


def _relative(member: tarfile.TarInfo) -> PurePosixPath:
    """The path of a member below the folder. Raises InvalidSource for links, devices and paths outside."""
    path = PurePosixPath(member.name)
    if not (member.isreg() or member.isdir()):
        raise InvalidSource(f"{member.name!r} in the source archive is neither a file nor a folder.")
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        raise InvalidSource(f"{member.name!r} in the source archive is outside of the archive's folder.")
    return path
