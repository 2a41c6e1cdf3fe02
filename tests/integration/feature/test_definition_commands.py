"""The definition commands of the CLI against a running service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import flywheel as fw
from flywheel_common.grpc.server import Server
from tests.support.commands import flywheel

DEFINITIONS = """import flywheel as fw

plane = fw.Entity("plane", {"tailnum": fw.STRING}, owner="ops")
planes = fw.ParquetSource(
    "planes",
    {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "built": fw.FLOAT64},
    timestamp="at",
    uri="s3://bucket/planes/",
)
landings = fw.StreamSource(
    "landings", {"tailnum": fw.STRING, "at": fw.TIMESTAMP, "delay": fw.FLOAT64}, timestamp="at"
)
facts = fw.BatchView("facts", plane, planes, {"built": fw.FLOAT64}, ttl="1d", tags={"team": "air"})
recent = fw.StreamView(
    "recent",
    plane,
    landings,
    [
        fw.mean("delay", "1h"),
        fw.total("delay", "3h"),
    ],
)
late = fw.FeatureSet("late", ["facts:built", "recent:*"], description="what the model sees")
"""
Run = Callable[..., Awaitable[tuple[int, str]]]


def write(file: Path, text: str) -> None:
    file.write_text(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "features.py"
    found.write_text(DEFINITIONS)
    return found


@pytest.fixture
def run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the CLI; returns the exit code and the output."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")

    async def start(*arguments: object) -> tuple[int, str]:
        result = await flywheel(*map(str, arguments), feature=f"127.0.0.1:{server.port}")
        return result.exit_code, result.output

    return start


@pytest.mark.timeout(120)
async def test_definitions_are_planned_applied_compared_and_deleted(
    run: Run, file: Path, client: fw.Client
) -> None:
    code, text = await run("plan", file)
    assert code == 0 and text.count("CREATE") == 6
    with pytest.raises(fw.NotFound):
        await client.lineage("views/facts")
    code, text = await run("apply", file, "--yes")
    assert code == 0 and "Applied 6 changes" in text
    code, text = await run("apply", file)
    assert (code, text.strip()) == (0, "Nothing to change: everything is applied as it is in the file.")

    write(file, DEFINITIONS.replace('ttl="1d"', 'ttl="2d"').replace("sees", "looks at"))
    code, text = await run("diff", file)
    assert code == 0 and "views/facts/versions/2 NEW_VERSION" in text
    assert "ttl: 86400000000 -> 172800000000" in text and "planes" not in text
    assert (await run("apply", file, "-y"))[0] == 0
    code, text = await run("diff", "views/facts")
    assert text.splitlines() == [
        "projects/default/views/facts/versions/1 -> projects/default/views/facts/versions/2",
        "  ttl: 86400s -> 172800s",
    ]
    code, text = await run("diff", "featureSets/late", 1, 2)
    assert "+ view_versions: projects/default/views/facts/versions/2" in text and code == 0

    code, text = await run("features", "lineage", "sources/planes")
    assert code == 0 and "views/facts/versions/2 -> featureSets/late/versions/2" in text
    code, text = await run("delete", "views/facts", "--yes")
    assert code == 1 and "IN_USE" in text and "featureSets/late" in text
    code, text = await run("delete", "views/facts", "featureSets/late", "--yes")
    assert code == 0 and text.count("DELETE") == 2


@pytest.mark.timeout(90)
async def test_a_mistake_is_reported_with_file_and_line(run: Run, file: Path) -> None:
    lines = DEFINITIONS.splitlines()
    write(
        file, DEFINITIONS.replace('fw.total("delay"', 'fw.total("dely"').replace("facts:built", "facts:bilt")
    )
    code, text = await run("apply", file, "--yes")
    assert code == 1
    total = 1 + next(i for i, line in enumerate(lines) if "fw.total" in line)
    last = 1 + next(i for i, line in enumerate(lines) if "fw.FeatureSet" in line)
    assert f"features.py:{total}: projects/default/views/recent stream.aggregations[1].field" in text
    assert f"features.py:{last}: projects/default/featureSets/late features[0]" in text
    write(file, DEFINITIONS.replace('ttl="1d"', 'ttl="one day"'))
    code, text = await run("plan", file)
    facts = 1 + next(i for i, line in enumerate(lines) if "fw.BatchView" in line)
    assert code == 1 and f"features.py:{facts}: BatchView 'facts': 'one day' is not a duration" in text


@pytest.mark.timeout(90)
async def test_lists_are_filtered(run: Run, file: Path) -> None:
    assert (await run("apply", file, "--yes"))[0] == 0

    async def listed(*arguments: str) -> str:
        code, text = await run("features", "list", *arguments)
        assert code == 0
        return text

    assert "views/recent" in (everything := await listed("views")) and "views/facts" in everything
    tagged = await listed("views", "--filter", "tag:team=air")
    assert "views/facts" in tagged and "views/recent" not in tagged
    assert "entities/plane" in await listed("entities", "--filter", "owner:ops")
    assert "entities/plane" not in await listed("entities", "--filter", "owner:op")
    assert (
        "sources/landings" in (some := await listed("sources", "--filter", "land")) and "planes" not in some
    )
    assert "featureSets/late" in await listed("featureSets", "--filter", "model sees")
    code, text = await run("features", "list", "views", "--filter", "tag:")
    assert code == 1 and "INVALID_FILTER" in text
