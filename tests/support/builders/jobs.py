"""A job without a runner, which records what the work on it reports."""

from __future__ import annotations

from collections.abc import Callable

from flywheel_feature.jobs.runner import JobCancelled


class RecordingJob:
    """Records messages, progress and checkpoint (port: jobs.progress.ResumableJob).

    `on_message` is called with every message and may raise. The job is cancelled once a message begins with
    `cancel_at`.
    """

    def __init__(
        self,
        checkpoint: bytes = b"",
        *,
        on_message: Callable[[str], None] = lambda message: None,
        cancel_at: str | tuple[str, ...] = (),
    ) -> None:
        self.checkpoint = checkpoint
        self.messages: list[str] = []
        self.progressed: list[tuple[int, int]] = []
        self.units: set[str] = set()
        self._on_message = on_message
        self._cancel_at = cancel_at
        self._cancelled = False

    @property
    def done(self) -> list[int]:
        """The first number of every progress report."""
        return [done for done, _ in self.progressed]

    def progress(self, done: int, total: int, unit: str = "", message: str = "") -> None:
        self.messages.append(message)
        self.progressed.append((done, total))
        self.units.add(unit)
        self._cancelled = self._cancelled or message.startswith(self._cancel_at)
        self._on_message(message)

    def check_cancelled(self) -> None:
        if self._cancelled:
            raise JobCancelled

    async def save_checkpoint(self, checkpoint: bytes) -> None:
        self.checkpoint = checkpoint
