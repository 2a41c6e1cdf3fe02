"""The command `flywheel models why VERSION`."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree

from flywheel.cli.output import call, console, show, state
from flywheel.cli.version_argument import Version
from flywheel.client import Client
from flywheel_protos.trainer.v1 import origin_pb2


def why(version: Version) -> None:
    """Show where a version comes from: policy, event, pipeline, run, training set, views, sources."""

    async def work(client: Client) -> None:
        found = await client.explain_version(version)
        if state["json"]:
            show(found)
        else:
            console.print(_tree(found))

    call(work)


def _tree(node: origin_pb2.OriginNode) -> Tree:
    text = f"[bold]{node.kind}[/bold] {escape(node.name)} [dim]{escape(node.detail)}[/dim]"
    tree = Tree(text, highlight=False)
    for child in node.children:
        tree.add(_tree(child))
    return tree
