"""Packs the source folder of a training job into an archive that is named by its digest."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from flywheel.errors import SourceError

MAX_BYTES = 64 * 1024 * 1024
"""Largest total size of the files of a source folder."""
MAX_FILES = 10_000
MAX_REQUIREMENTS_BYTES = 4 * 1024 * 1024
MAX_DIFF_CHARACTERS = 64 * 1024
LOCKS = ("requirements.lock", "uv.lock", "poetry.lock", "requirements.txt")
"""Files that record the versions of packages, in the order in which they are looked for."""


@dataclass(frozen=True)
class SourceArchive:
    """The packed files of a folder: equal files give equal bytes."""

    content: bytes
    """A gzipped tar archive."""
    files: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def pack(folder: Path) -> SourceArchive:
    """Pack the files of a folder that git does not ignore; the folder need not be a repository.

    A link to a file of the folder is packed as that file. Raises SourceError for other links, for folders
    that are too large (naming the largest files) or empty, and without git.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise SourceError(f"{folder} is no folder.")
    files = [(name, path) for name in listed(root) if (path := _checked(root, name)) is not None]
    if not files:
        raise SourceError(f"{folder} has no files, or git ignores all of them.")
    sizes = sorted(((path.stat().st_size, name) for name, path in files), reverse=True)
    if len(files) > MAX_FILES or sum(size for size, _ in sizes) > MAX_BYTES:
        largest = ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in sizes[:5])
        raise SourceError(
            f"{folder} has {len(files)} files with {sum(size for size, _ in sizes) / 1e6:.1f} MB; at most "
            f"{MAX_FILES} files with {MAX_BYTES / 1e6:.0f} MB can be submitted. Add data and results to "
            f".gitignore. The largest files: {largest}."
        )
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in files:
            info = tarfile.TarInfo(name)
            content = path.read_bytes()
            info.size = len(content)
            info.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            tar.addfile(info, io.BytesIO(content))
    return SourceArchive(buffer.getvalue(), tuple(name for name, _ in files))


def listed(root: Path) -> list[str]:
    """The names of the files below the folder that git tracks or does not ignore, sorted."""
    arguments = ["ls-files", "-z", "--others", "--exclude-standard"]
    if git(root, "rev-parse", "--is-inside-work-tree") is not None:
        output = git(root, *arguments, "--cached")
    else:
        with tempfile.TemporaryDirectory(prefix="flywheel-git-") as empty:
            git(root, "init", "--quiet", "--bare", empty)
            output = git(root, f"--git-dir={empty}", f"--work-tree={root}", *arguments)
    if output is None:
        raise SourceError(f"git cannot list the files of {root}.")
    return sorted(set(filter(None, output.split("\0"))))


def _checked(root: Path, name: str) -> Path | None:
    """The file to pack; None if it was deleted. Raises SourceError for what is no file of the folder."""
    path = root / name
    if not path.exists() and not path.is_symlink():
        return None
    target = path.resolve()
    if not target.is_relative_to(root):
        raise SourceError(f"{name} is a link to {target}, which is outside of the source folder.")
    if not target.is_file():
        kind = "a broken link" if path.is_symlink() and not target.exists() else "no regular file"
        raise SourceError(
            f"{name} is {kind}. Links to folders and git submodules cannot be submitted: copy the files."
        )
    return path


def check_function(folder: Path, archive: SourceArchive, function: str) -> None:
    """Raises SourceError unless `file.py:function` is packed and accepts one argument; it never runs."""
    file, separator, name = function.partition(":")
    if not separator or not file.endswith(".py") or not name.isidentifier():
        raise SourceError(f"function is {function!r}, which is not of the form file.py:function.")
    if file not in archive.files:
        raise SourceError(f"{folder} has no file {file!r}, or git ignores it.")
    try:
        tree = ast.parse((folder / file).read_bytes(), filename=file)
    except (SyntaxError, ValueError) as error:
        raise SourceError(f"{file} is no Python: {error}") from error
    for node in tree.body:
        if isinstance(node, ast.AsyncFunctionDef) and node.name == name:
            raise SourceError(f"{function} is async; a job calls an ordinary function.")
        if isinstance(node, ast.FunctionDef) and node.name == name and not node.decorator_list:
            _check_arguments(function, node.args)
    names = {found for node in tree.body for found in _bound(node)}
    if name not in names and "*" not in names:
        known = sorted(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        raise SourceError(f"{file} has no function {name!r}; it has: {', '.join(known) or 'none'}.")


def check_requirements(folder: Path, archive: SourceArchive, name: str) -> None:
    """Raises SourceError unless the requirements file is packed and has text of a bounded size."""
    if name not in archive.files:
        raise SourceError(f"{folder} has no file {name!r}, or git ignores it.")
    content = (folder / name).read_bytes()
    if len(content) > MAX_REQUIREMENTS_BYTES:
        raise SourceError(f"{name} has {len(content)} bytes; at most {MAX_REQUIREMENTS_BYTES} are allowed.")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise SourceError(f"{name} is no text: {error}.") from error


def _check_arguments(function: str, arguments: ast.arguments) -> None:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    keywords = [default for default in arguments.kw_defaults if default is None]
    if required > 1 or (positional < 1 and arguments.vararg is None) or keywords:
        raise SourceError(
            f"{function} has the arguments ({ast.unparse(arguments)}), but it is called with one: ctx."
        )


def _bound(node: ast.stmt) -> list[str]:
    """Names that a statement of a module may define; statements in blocks count too."""
    found = []
    for one in ast.walk(node):
        if isinstance(one, ast.FunctionDef | ast.ClassDef):
            found.append(one.name)
        elif isinstance(one, ast.Import | ast.ImportFrom):
            found += [(alias.asname or alias.name).partition(".")[0] for alias in one.names]
        elif isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            found.append(one.id)
    return found


def provenance(folder: Path, lock: Path | None = None) -> dict[str, str]:
    """Commit, uncommitted changes and lock of a source folder; absent ones are left out.

    `dirty_sha256` is the digest of the whole difference to the commit, `dirty_diff` its beginning. New files
    are in the archive only. Raises SourceError if `lock` is given but no file.
    """
    found = {}
    commit = git(folder, "rev-parse", "HEAD")
    if commit is not None:
        found["commit"] = commit.strip()
        difference = git(folder, "diff", "HEAD", "--no-color", "--", ".") or ""
        if difference:
            found["dirty_sha256"] = hashlib.sha256(difference.encode()).hexdigest()
            found["dirty_diff"] = difference[:MAX_DIFF_CHARACTERS]
    if lock is not None and not lock.is_file():
        raise SourceError(f"The lock {lock} is no file.")
    used = lock or next((folder / name for name in LOCKS if (folder / name).is_file()), None)
    if used is not None:
        found["lock"] = used.name
        found["lock_sha256"] = hashlib.sha256(used.read_bytes()).hexdigest()
    return found


def git(folder: Path, *arguments: str) -> str | None:
    """The output of a git command in this folder; None if it fails. Raises SourceError without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise SourceError("git is needed to find the files of a job's source: install it.") from None
    except subprocess.TimeoutExpired:
        raise SourceError(f"git did not answer within 60 s in {folder}.") from None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None
