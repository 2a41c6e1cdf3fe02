"""The answers of a teacher, a registered model, for the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from flywheel_common.arrays import Floats
from flywheel_job.context import Context
from flywheel_job.errors import UnusableTrainingSet
from flywheel_job.labelled_rows.model import ScoredModel, fed_rows, read_model
from flywheel_job.launch import LABEL, TIME
from flywheel_job.model_file import ModelFile
from flywheel_job.recipes.dataset import in_time_order

SCORED_ROWS = 8192
"""Rows that the teacher scores at once."""
PLACE = "__row"


def teacher_answers(ctx: Context, teacher: ModelFile, train_end: int, outputs: int) -> Floats:
    """Calibrated outputs `[train_end, outputs]`, which the ranks compute in equal parts. Collective.

    A row that the input tensors of the teacher cannot hold exactly has no answer (NaN).
    """
    if teacher.classes and len(teacher.classes) != outputs:
        raise UnusableTrainingSet(
            f"{teacher.name} has {len(teacher.classes)} classes, but the labels have {outputs}."
        )
    names = [*dict.fromkeys(one.name for one in teacher.inputs), LABEL, TIME]
    ordered = in_time_order(ctx.table("train", names)).head(train_end)
    own_rows = ordered.with_row_index(PLACE)[ctx.rank :: ctx.world_size]
    model = ScoredModel(teacher, read_model(ctx.store, teacher), threads=torch.get_num_threads())
    parts: list[Any] = []
    for begin in range(0, own_rows.height, SCORED_ROWS):
        fed = fed_rows(own_rows.slice(begin, SCORED_ROWS), [teacher])
        if fed.frame.height:
            parts.append((fed.frame[PLACE].to_numpy(), model.outputs(fed.feeds[0])))
    if ctx.world_size > 1:
        gathered: list[Any] = [None] * ctx.world_size
        dist.all_gather_object(gathered, parts)
        parts = [one for part in gathered for one in part]
    found = np.full((train_end, outputs), np.nan)
    for places, answers in parts:
        found[places] = answers.reshape(len(places), outputs)
    return found
