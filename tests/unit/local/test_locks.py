"""Lock files: each service installs alone from its own lock."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SERVICES = ("feature", "registry", "trainer", "inference", "monitor")
PACKAGES = (*SERVICES, "trainer/job")
OWN = {"flywheel_common", "flywheel_protos", "flywheel_job", *(f"flywheel_{name}" for name in SERVICES)}


def _locked(path: Path) -> set[str]:
    return {
        line.split("==")[0].lower()
        for line in path.read_text().splitlines()
        if re.match(r"[a-z0-9]", line, re.IGNORECASE)
    }


def _imported(package: Path) -> set[str]:
    found = set()
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - OWN


@pytest.mark.parametrize("service", PACKAGES)
def test_a_service_finds_its_imports_in_its_own_lock(service: str) -> None:
    distributions = packages_distributions()
    locked = _locked(REPOSITORY / "services" / service / "requirements.lock")
    missing = {
        name
        for name in _imported(next((REPOSITORY / "services" / service).glob("flywheel_*")))
        if name != "google"
        and not {each.lower().replace("_", "-") for each in distributions.get(name, [name])} & locked
    }
    assert missing == set(), f"add them to services/{service}/pyproject.toml, then make lock"


@pytest.mark.parametrize("service", SERVICES)
def test_services_install_without_torch_and_ray(service: str) -> None:
    only_elsewhere = {"torch", "ray"} if service == "trainer" else {"torch", "ray", "dbos"}
    assert _locked(REPOSITORY / "services" / service / "requirements.lock") & only_elsewhere == set()


def test_jobs_install_with_torch_and_ray() -> None:
    assert {"torch", "ray"} <= _locked(REPOSITORY / "services/trainer/job/requirements.lock")


def test_locks_name_no_download_address() -> None:
    for lock in [
        *REPOSITORY.glob("*.lock"),
        *REPOSITORY.glob("services/**/*.lock"),
        *REPOSITORY.glob("deploy/**/*.lock"),
    ]:
        assert "://" not in lock.read_text(), lock
        assert "--index-url" not in lock.read_text(), lock


@pytest.mark.parametrize("service", PACKAGES)
def test_a_service_and_the_workspace_agree_on_versions(service: str) -> None:
    def versions(path: Path) -> set[str]:
        return {line.rstrip(" \\") for line in path.read_text().splitlines() if "==" in line}

    own = versions(REPOSITORY / "services" / service / "requirements.lock")
    assert own - versions(REPOSITORY / "requirements.lock") == set()
