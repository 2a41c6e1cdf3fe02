"""The teacher of a TRAIN job, checked against its task and its training set."""

from __future__ import annotations

from flywheel_job.model_file import ModelFile
from flywheel_trainer.jobs.errors import InvalidSpec
from flywheel_trainer.jobs.models import RegistryModels
from flywheel_trainer.jobs.ports import TrainingSet
from flywheel_trainer.jobs.train_spec import TrainSpec

FIELD = "train.tabular.teacher"


async def find_teacher(models: RegistryModels, spec: TrainSpec, rows: TrainingSet) -> ModelFile | None:
    """The file of the teacher; None if the job has none.

    Raises InvalidSpec if its output is of another kind than the task, or the training set lacks one of its
    inputs, and the errors of `RegistryModels.version`.
    """
    if not spec.teacher:
        return None
    found = (await models.version(spec.teacher)).file
    task = spec.hyperparameters.task
    if found.kind != task.upper():
        raise InvalidSpec(
            f"{FIELD} names {spec.teacher}, whose output is {found.kind}, but the task is {task}.",
            field=FIELD,
        )
    known = {column.name for column in (*rows.columns, *rows.extra_columns)}
    missing = [one.name for one in found.inputs if one.name not in known]
    if missing:
        raise InvalidSpec(
            f"{FIELD} names {spec.teacher}, which reads {missing[0]!r}, but {rows.name} has no such column.",
            field=FIELD,
        )
    return found
