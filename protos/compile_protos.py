"""Compiles the *.proto files below this folder into the Python package ``flywheel_protos``.

``flywheel/feature/v1/feature.proto`` becomes ``flywheel_protos.feature.v1.feature_pb2`` (with ``_pb2_grpc``
and ``.pyi``). The leading ``flywheel`` is dropped, because it is the import name of the SDK; proto packages
and file names in the descriptor pool are unchanged. Other roots keep their name
(``open_inference/v2/x.proto`` becomes ``flywheel_protos.open_inference.v2.x_pb2``).

Runs as the build hook of this distribution and as ``python compile_protos.py``.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script without hatchling
    BuildHookInterface = object  # type: ignore[assignment,misc]

PACKAGE = "flywheel_protos"
SOURCE_ROOT = "flywheel"


def compile_protos(root: Path) -> int:
    """Generates ``root/_generated``; returns the number of compiled files."""
    from grpc_tools import protoc

    generated = root / "_generated"
    sources = sorted(p for p in root.rglob("*.proto") if generated not in p.parents)
    includes = [str(root), str(resources.files("grpc_tools") / "_proto"), *_common_protos()]
    with tempfile.TemporaryDirectory(dir=root, prefix=".compile-") as scratch_name:
        scratch = Path(scratch_name)
        raw, package = scratch / "raw", scratch / PACKAGE
        raw.mkdir()
        package.mkdir()
        if sources:
            arguments = ["protoc", *(f"-I{path}" for path in includes)]
            arguments += [f"--{kind}_out={raw}" for kind in ("python", "pyi", "grpc_python")]
            arguments += [str(p.relative_to(root)) for p in sources]
            if protoc.main(arguments) != 0:
                raise SystemExit("compile_protos: protoc failed, see the errors above")
        own_roots = sorted(p.name for p in raw.iterdir())
        for path in sorted(raw.rglob("*.py*")):
            relative = path.relative_to(raw)
            parts = relative.parts[1:] if relative.parts[0] == SOURCE_ROOT else relative.parts
            target = package.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(_rebase_imports(path.read_text(), own_roots))
        for folder in [package, *(p for p in package.rglob("*") if p.is_dir())]:
            (folder / "__init__.py").touch()
        (package / "py.typed").touch()
        _replace(package, generated / PACKAGE)
    return len(sources)


def _common_protos() -> list[str]:
    """The include folder of google/rpc/*.proto, if googleapis-common-protos is installed."""
    try:
        folder = resources.files("google.rpc")
    except ModuleNotFoundError:
        return []
    return [str(Path(str(folder / "status.proto")).parents[2])]


def _rebase_imports(code: str, own_roots: list[str]) -> str:
    """Rewrites the imports between generated files, which protoc derives from file paths."""
    for name in own_roots:
        package = PACKAGE if name == SOURCE_ROOT else f"{PACKAGE}.{name}"
        code = re.sub(rf"^from {name}([. ])", rf"from {package}\1", code, flags=re.MULTILINE)
    return code


def _replace(new: Path, old: Path) -> None:
    """Replaces a folder by renaming, so that readers see the old code or the new code, not a mixture."""
    old.parent.mkdir(exist_ok=True)
    retired = new.parent / "retired"
    if old.exists():
        old.rename(retired)
    new.rename(old)
    shutil.rmtree(retired, ignore_errors=True)


class CompileProtos(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook of this distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        compile_protos(Path(self.root))


if __name__ == "__main__":
    print(f"compiled {compile_protos(Path(__file__).resolve().parent)} proto files", file=sys.stderr)
