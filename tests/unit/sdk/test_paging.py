"""Reading of all pages of a List call, and the hint that there are more items."""

from __future__ import annotations

from typing import Any

import pytest

from flywheel.cli import output
from flywheel.paging import PAGE_SIZE, list_items
from flywheel_protos.registry.v1 import model_pb2, registry_pb2


class Server:
    """A List method over numbered models, which answers pages of at most `largest` items."""

    def __init__(self, total: int, largest: int = PAGE_SIZE) -> None:
        self.total, self.largest = total, largest
        self.calls = 0

    async def ListModels(self, request: registry_pb2.ListModelsRequest) -> Any:
        self.calls += 1
        assert "projects/p" == request.parent
        start = int(request.page_token or 0)
        end = min(start + min(request.page_size, self.largest), self.total)
        return registry_pb2.ListModelsResponse(
            models=[model_pb2.Model(name=f"m{i}") for i in range(start, end)],
            next_page_token=str(end) if end < self.total else "",
        )


REQUEST = registry_pb2.ListModelsRequest(parent="projects/p")


@pytest.mark.parametrize(
    ("total", "limit", "read", "more"),
    [(0, None, 0, False), (120, None, 120, False), (120, 120, 120, False), (120, 70, 70, True)],
)
async def test_pages_are_read_up_to_the_limit(total: int, limit: int | None, read: int, more: bool) -> None:
    server = Server(total, largest=50)
    listing = await list_items(server.ListModels, REQUEST, "models", limit)
    assert [f"m{i}" for i in range(read)] == [model.name for model in listing.items]
    assert (more, "") == (listing.more, REQUEST.page_token)


async def test_a_list_command_prints_all_pages_and_says_if_there_are_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(120, largest=50)
    await output.show_list(server.ListModels, REQUEST, "models", ["name"], 1000)
    printed = capsys.readouterr()
    assert ("", 120) == (printed.err, sum(f"m{i} " in printed.out for i in range(120)))
    await output.show_list(server.ListModels, REQUEST, "models", ["name"], 60)
    printed = capsys.readouterr()
    assert "there are more: use --limit" in printed.err
    assert "m59 " in printed.out
    assert "m60 " not in printed.out
