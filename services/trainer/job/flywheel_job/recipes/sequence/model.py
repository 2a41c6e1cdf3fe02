"""The decoder-only transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder."""

    vocabulary: int
    length: int
    """Longest sequence."""
    width: int = 64
    layers: int = 4
    heads: int = 4


class Decoder:
    """Builds the decoder or some of its layers (`parallel.training.Layered`)."""

    def __init__(self, shape: DecoderShape, seed: int) -> None:
        self.shape, self.seed = shape, seed
        self.layers = shape.layers

    def build(self, layers: range, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
        return DecoderPart(self.shape, self.seed, layers, wrap)

    def tensor_plan(self) -> Mapping[str, ParallelStyle]:
        columns = dict.fromkeys(("query", "key", "value", "up"), ColwiseParallel)
        rows = dict.fromkeys(("output", "down"), RowwiseParallel)
        return {name: style() for name, style in (columns | rows).items()}


class DecoderPart(nn.Module):
    """Tokens `[rows, length]` → logits `[rows, length, vocabulary]`; a stage: activations → activations."""

    def __init__(
        self, shape: DecoderShape, seed: int, layers: range, wrap: Callable[[nn.Module], nn.Module]
    ) -> None:
        super().__init__()
        self.token = self.position = self.norm = self.head = None
        with torch.random.fork_rng():
            if layers.start == 0:
                torch.manual_seed(seed)
                self.token = nn.Embedding(shape.vocabulary, shape.width)
                self.position = nn.Embedding(shape.length, shape.width)
            self.blocks = nn.ModuleDict()
            for number in layers:
                # Each layer has its own seed, so that a stage can build its layers alone.
                torch.manual_seed(seed + 1 + number)
                self.blocks[str(number)] = wrap(Block(shape))
            if layers.stop == shape.layers:
                torch.manual_seed(seed + 1 + shape.layers)
                self.norm = nn.LayerNorm(shape.width)
                self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.token is not None and self.position is not None:
            places = torch.arange(inputs.shape[1], device=inputs.device)
            inputs = self.token(inputs) + self.position(places)
        for block in self.blocks.values():
            inputs = block(inputs)
        if self.norm is not None and self.head is not None:
            inputs = self.head(self.norm(inputs))
        return inputs


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each with a residual connection."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        width = shape.width
        self.head_width = width // shape.heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows, length, _ = inputs.shape
        normed = self.before_attention(inputs)
        # With tensor parallelism a rank has some of the heads only, so their number follows from the width.
        query, key, value = (
            one(normed).view(rows, length, -1, self.head_width).transpose(1, 2)
            for one in (self.query, self.key, self.value)
        )
        attended = scaled_dot_product_attention(query, key, value, is_causal=True)
        inputs = inputs + self.output(attended.transpose(1, 2).reshape(rows, length, -1))
        return inputs + self.down(nn.functional.gelu(self.up(self.before_network(inputs))))


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next tokens."""
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten())
