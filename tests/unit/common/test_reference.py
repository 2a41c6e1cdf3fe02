"""The generator of docs/reference finds error classes that are incomplete or contradict each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from flywheel_common.errors import FailedPrecondition, FlywheelError, NotFound
from flywheel_common.grpc.auth import READ

SCRIPT = Path(__file__).parents[3] / "docs" / "reference" / "generate.py"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error(base: type[FlywheelError], **body: str) -> type[FlywheelError]:
    return type("Example", (base,), body)


COMPLETE = {"__doc__": "The view does not exist.", "reason": "UNKNOWN_VIEW", "remedy": "Apply it."}


def test_a_complete_class_has_no_problem(generate: ModuleType) -> None:
    assert [] == list(generate.class_problems([error(NotFound, **COMPLETE)]))


@pytest.mark.parametrize("missing", sorted(COMPLETE))
def test_an_incomplete_class_is_a_problem(generate: ModuleType, missing: str) -> None:
    body = {key: value for key, value in COMPLETE.items() if key != missing}
    assert 1 == len(list(generate.class_problems([error(NotFound, **body)])))


def test_a_reason_and_status_have_one_meaning(generate: ModuleType) -> None:
    changed = {**COMPLETE, "__doc__": "Something else."}
    other_status = error(FailedPrecondition, **changed)
    assert [] == list(generate.class_problems([error(NotFound, **COMPLETE), other_status]))
    same_status = error(NotFound, **changed)
    assert 1 == len(list(generate.class_problems([error(NotFound, **COMPLETE), same_status])))


def test_a_reason_with_two_statuses_has_two_rows(generate: ModuleType) -> None:
    page = generate.errors_page([error(NotFound, **COMPLETE), error(FailedPrecondition, **COMPLETE)])
    for status in ("NOT_FOUND", "FAILED_PRECONDITION"):
        assert f"| `UNKNOWN_VIEW` | {status} | The view does not exist. | Apply it. |" in page


def test_every_common_error_is_on_the_page(generate: ModuleType) -> None:
    classes = generate.error_classes()
    page = generate.errors_page(classes)
    assert {"INVALID_NAME", "OVERLOADED", "POSTGRES_UNAVAILABLE"} <= {cls.reason for cls in classes}
    assert all(f"| `{cls.reason}` |" in page for cls in classes)


def test_a_permission_is_shown_with_its_roles(generate: ModuleType) -> None:
    page, _ = generate.permissions_page()
    assert "| `GetView` | READ | admin, editor, operator, service, viewer |" in page
    assert "admin, editor, operator, service, viewer" == generate.roles(READ)
