"""The training step of a model under each strategy, behind one interface."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from flywheel_job.parallel.gradients import average_gradients, clip_gradients
from flywheel_job.parallel.layout import Layout, Strategy
from flywheel_job.parallel.options import Options

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(output, target) → mean over the rows of a batch."""
Optimizer = Callable[..., torch.optim.Optimizer]
"""(parameters, fused=…) → optimizer."""


class Layered(Protocol):
    """A model of equal layers with an input part before and an output part after them."""

    layers: int

    def build(self, layers: range, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """The module with these layers; the first layer brings the input part, the last the output part.

        `wrap` is called with each layer when it is built, so that a model larger than one device never exists
        as a whole. Equal arguments give equal parameters, also when a layer is built alone.
        """

    def tensor_plan(self) -> Mapping[str, ParallelStyle]:
        """How the matrices of a layer are divided, by the name of the submodule."""


class Training(Protocol):
    """A model in training."""

    module: nn.Module
    """This rank's part."""
    optimizer: torch.optim.Optimizer
    layout: Layout

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """One optimizer step on this replica's rows; returns the mean loss over the rows of all replicas."""

    def evaluate(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        """The mean loss over the rows of all replicas, without gradients."""


def start(
    model: Layered,
    loss: Loss,
    optimizer: Optimizer,
    layout: Layout,
    device: torch.device,
    options: Options,
) -> Training:
    """Build this rank's part of the model, with its optimizer."""
    layers = layout.layers(model.layers)
    fused = device.type == "cuda" if options.fused is None else options.fused
    mesh = _mesh(layout, device)

    def wrap(layer: nn.Module) -> nn.Module:
        if options.compile:
            layer.compile(backend=options.compile)
        if layout.strategy is Strategy.TENSOR and mesh is not None:
            parallelize_module(layer, mesh["part"], dict(model.tensor_plan()))
        layer.to(device)
        if layout.strategy is Strategy.FSDP and mesh is not None:
            fully_shard(layer, mesh=mesh["replica"])
        return layer

    module = model.build(layers, wrap).to(device)
    if layout.strategy is Strategy.FSDP and mesh is not None:
        fully_shard(module, mesh=mesh["replica"])
    made = optimizer(module.parameters(), fused=fused)
    if layout.strategy in {Strategy.PIPELINE, Strategy.DDP_PIPELINE} and layout.parts > 1:
        assert mesh is not None
        return PipelineTraining(module, made, loss, layout, mesh, device, options)
    return WholeTraining(module, made, loss, layout, mesh, device, options)


def _mesh(layout: Layout, device: torch.device) -> DeviceMesh | None:
    if layout.replicas * layout.parts == 1:
        return None
    names = ("replica", "part")
    return init_device_mesh(device.type, (layout.replicas, layout.parts), mesh_dim_names=names)


class WholeTraining:
    """Every rank computes all layers: DDP, FSDP and tensor parallelism, or a single rank."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        layout: Layout,
        mesh: DeviceMesh | None,
        device: torch.device,
        options: Options,
    ) -> None:
        self.module, self.optimizer, self.layout = module, optimizer, layout
        self._loss, self._device, self._options = loss, device, options
        self._replicas = mesh["replica"].get_group() if mesh and layout.replicas > 1 else None
        self._called = module
        if self._replicas is not None and layout.strategy is not Strategy.FSDP:
            ids = [device.index] if device.type == "cuda" else None
            self._called = nn.parallel.DistributedDataParallel(
                module, device_ids=ids, process_group=self._replicas
            )

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        rows = len(inputs)
        total = torch.zeros((), device=self._device)
        parts = list(zip(_split(inputs, self._options), _split(targets, self._options), strict=True))
        for number, (some, wanted) in enumerate(parts, start=1):
            with self._reduce_gradients(last=number == len(parts)):
                with _autocast(self._device, self._options):
                    loss = self._loss(self._called(some), wanted) * (len(some) / rows)
                loss.backward()
            total += loss.detach()
        if self._options.clip_norm:
            clip_gradients(self.module.parameters(), self._options.clip_norm, None)
        self.optimizer.step()
        return self._mean(total)

    def evaluate(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.module.eval()
        rows = len(inputs)
        total = torch.zeros((), device=self._device)
        with torch.no_grad(), _autocast(self._device, self._options):
            for some, wanted in zip(
                _split(inputs, self._options), _split(targets, self._options), strict=True
            ):
                total += self._loss(self.module(some), wanted) * (len(some) / rows)
        return self._mean(total)

    @contextlib.contextmanager
    def _reduce_gradients(self, *, last: bool) -> Iterator[None]:
        """Exchange gradients with the other replicas after the last part of a batch only."""
        if self._replicas is not None and self.layout.strategy is Strategy.FSDP:
            self.module.set_requires_gradient_sync(last)
            yield
        elif isinstance(self._called, nn.parallel.DistributedDataParallel) and not last:
            with self._called.no_sync():
                yield
        else:
            yield

    def _mean(self, loss: torch.Tensor) -> float:
        if self._replicas is not None:
            dist.all_reduce(loss, group=self._replicas)
            loss /= self.layout.replicas
        return float(loss)


class PipelineTraining:
    """Each rank computes some of the layers; replicas of the pipeline average their gradients."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss,
        layout: Layout,
        mesh: DeviceMesh,
        device: torch.device,
        options: Options,
    ) -> None:
        self.module, self.optimizer, self.layout = module, optimizer, layout
        self._device, self._options = device, options
        self._stages = mesh["part"].get_group()
        self._replicas = mesh["replica"].get_group() if layout.replicas > 1 else None
        # Gradients are averaged after the last micro-batch: DDP inside of a stage fails on the second batch,
        # because it counts each parameter once for every micro-batch (torch 2.13).
        self._stage = PipelineStage(module, layout.part, layout.parts, device, group=self._stages)
        self._schedule = Schedule1F1B(self._stage, self.micro_batches, loss_fn=loss)

    @property
    def micro_batches(self) -> int:
        """At least one for each stage, or most stages would wait most of the time."""
        return max(self._options.accumulate, self.layout.parts)

    def step(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._run(self._schedule.step, inputs, targets)
        if self._replicas is not None:
            average_gradients(self.module.parameters(), self._replicas)
        if self._options.clip_norm:
            clip_gradients(self.module.parameters(), self._options.clip_norm, self._stages)
        self.optimizer.step()
        return self._mean(loss)

    def evaluate(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.module.eval()
        with torch.no_grad():
            return self._mean(self._run(self._schedule.eval, inputs, targets))

    def _run(self, call: Callable[..., Any], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss on the last stage, 0 on the others."""
        losses: list[torch.Tensor] = []
        arguments = (inputs,) if self._stage.is_first else ()
        wanted = {"target": targets, "losses": losses} if self._stage.is_last else {}
        with _autocast(self._device, self._options):
            call(*arguments, **wanted)
        return torch.stack(losses).mean().detach() if losses else torch.zeros((), device=self._device)

    def _mean(self, loss: torch.Tensor) -> float:
        dist.all_reduce(loss, group=self._stages)
        if self._replicas is not None:
            dist.all_reduce(loss, group=self._replicas)
            loss /= self.layout.replicas
        return float(loss)


def _split(rows: torch.Tensor, options: Options) -> tuple[torch.Tensor, ...]:
    return rows.chunk(options.accumulate)


def _autocast(device: torch.device, options: Options) -> contextlib.AbstractContextManager[Any]:
    if options.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
