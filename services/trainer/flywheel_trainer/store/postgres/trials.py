"""`TrialStore` on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from flywheel_common.paging import Page, cut, decode_token
from flywheel_common.postgres.pool import Pool, connection, transaction
from flywheel_job.outcome import Outcome
from flywheel_job.tuning.messages import trial_from_proto, trial_to_proto
from flywheel_job.tuning.trial import Trial, TrialState
from flywheel_protos.trainer.v1 import tuning_pb2 as pb
from flywheel_trainer.jobs.ending import storable
from flywheel_trainer.jobs.job import JobName
from flywheel_trainer.runs.run import Run, RunName
from flywheel_trainer.store.postgres.runs import check_attempt, end_run_with_outcome, insert_run
from flywheel_trainer.trials.errors import InvalidTrial
from flywheel_trainer.trials.run_state import ended_run_state, params_of
from flywheel_trainer.trials.trial_name import run_of

_JOB = "SELECT run_id, experiment, training_set FROM job WHERE id = $1 AND project = $2"
_GET = "SELECT * FROM trial WHERE job_id = $1 AND number = $2"
_COUNT = "SELECT count(*) FROM trial WHERE job_id = $1"
_INSERT = """
INSERT INTO trial (job_id, number, run_id, state, body, started_at) VALUES ($1, $2, $3, 'RUNNING', $4, $5)
"""
_UPDATE = """
UPDATE trial SET state = $3, body = $4, ended_at = $5 WHERE job_id = $1 AND number = $2 RETURNING *
"""
_LIST = "SELECT * FROM trial WHERE job_id = $1 AND number > $2 ORDER BY number LIMIT $3"


class PostgresTrials:
    """`TrialStore` on PostgreSQL."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def record(
        self, job: JobName, trial: Trial, outcome: Outcome | None, attempt: str, now: datetime
    ) -> Trial:
        async with transaction(self._pool) as conn:
            found = await conn.fetchrow(_JOB, job.job, job.project)
            parent = RunName(job.project, found["run_id"])
            # It locks the attempt, so that nothing of it is stored after its end.
            attempt_number = await check_attempt(conn, attempt, parent)
            known = await conn.fetchrow(_GET, job.job, trial.number)
            if known is not None and known["ended_at"] is not None:
                return _trial(known)
            run, body = run_of(parent, trial.number), _body(trial)
            if known is None:
                count = await conn.fetchval(_COUNT, job.job)
                if trial.number != count:
                    raise InvalidTrial(f"Trial {trial.number} does not follow the {count} stored ones.")
                await insert_run(
                    conn,
                    Run(
                        run,
                        found["experiment"],
                        params=params_of(trial),
                        training_set=found["training_set"],
                        job=str(job),
                        parent_run=str(parent),
                    ),
                    now,
                )
                await conn.execute(_INSERT, job.job, trial.number, run.run, body, now)
            ended_at = now if trial.ended else None
            row = await conn.fetchrow(_UPDATE, job.job, trial.number, trial.state, body, ended_at)
            if trial.ended and outcome is not None:
                state = ended_run_state(trial.state)
                await end_run_with_outcome(conn, run.run, storable(outcome), state, now, attempt_number)
            return _trial(row)

    async def list(self, job: JobName, size: int, token: str) -> Page[Trial]:
        (after,) = decode_token(token, query=str(job)) or [-1]
        async with connection(self._pool) as conn:
            rows = await conn.fetch(_LIST, job.job, after, size + 1)
        return cut([_trial(row) for row in rows], size, lambda one: (one.number,), query=str(job))

    async def all(self, job: JobName) -> Sequence[Trial]:
        async with connection(self._pool) as conn:
            return [_trial(row) for row in await conn.fetch(_LIST, job.job, -1, None)]

    async def get(self, job: JobName, number: int) -> Trial | None:
        async with connection(self._pool) as conn:
            row = await conn.fetchrow(_GET, job.job, number)
        return None if row is None else _trial(row)


def _body(trial: Trial) -> dict[str, Any]:
    message = trial_to_proto(trial)
    message.ClearField("state")
    reason = storable(Outcome(False, trial.error_reason, trial.error_message))
    message.error_reason, message.error_message = reason.error_reason, reason.error_message
    return MessageToDict(message, preserving_proto_field_name=True)


def _trial(row: Any) -> Trial:
    message = ParseDict(row["body"], pb.Trial(), ignore_unknown_fields=True)
    return trial_from_proto(message, TrialState(row["state"])).at(row["started_at"], row["ended_at"])
