"""The kind `champion`: the release and the model version in production."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flywheel_trainer.jobs.ports import Weights
from flywheel_trainer.pipelines.kinds.names import check_names
from flywheel_trainer.pipelines.ports import RegistryPeer
from flywheel_trainer.pipelines.step_kind import Begun, Result


class ChampionStep:
    """`StepKind` that looks the champion up; the outputs are empty texts if there is none."""

    required = ("model",)
    outputs = ("model_version_in_production", "release_in_production", "weights_of")
    cacheable = False

    def __init__(self, registry: RegistryPeer, weights: Weights) -> None:
        self._registry, self._weights = registry, weights

    def check(self, spec: Mapping[str, Any], project: str, later: Sequence[str]) -> None:
        check_names(spec, ("model",), project, later)

    async def run(self, step: Begun) -> Result:
        champion = await self._registry.champion(step.spec["model"])
        name = champion.version if champion is not None else ""
        has_weights = bool(name) and await self._weights.of(name) is not None
        message = name or "no champion"
        if name and not has_weights:
            message += ": it has no weights to start from"
        outputs = {
            "model_version_in_production": name,
            "release_in_production": champion.release if champion is not None else "",
            "weights_of": name if has_weights else "",
        }
        return Result(name, message, outputs)
