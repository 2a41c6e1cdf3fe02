"""The transitions of a rollout, driven at random."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flywheel_registry.policies.rollout_policy import RolloutPolicy
from flywheel_registry.rollouts import state_machine
from flywheel_registry.rollouts.errors import NotPaused, RolloutEnded
from flywheel_registry.rollouts.state_machine import Progress, RolloutState


class RolloutMachine(RuleBasedStateMachine):
    """Compares the machine with a plain counter of its steps."""

    percents = (1.0, 10.0, 50.0, 100.0)

    def __init__(self) -> None:
        super().__init__()
        self.policy = RolloutPolicy(canary_percents=self.percents)
        self.progress = Progress()
        self.moves = 0
        self.position = 0  # 0: loading, 1: shadow, 2 to 5: canary steps, 6: promoted
        self.ended = False
        self.paused = False

    @precondition(lambda self: not self.ended)
    @rule()
    def advance(self) -> None:
        self.progress, self.moves = state_machine.advance(self.progress, self.policy), self.moves + 1
        self.position, self.paused = self.position + 1, False
        self.ended = self.position == len(self.percents) + 2

    @precondition(lambda self: not self.ended)
    @rule(how=st.sampled_from(["abort", "withdraw", "expire"]))
    def finish(self, how: str) -> None:
        withdrawn = RolloutState.REFUSED if self.position <= 1 else RolloutState.ROLLED_BACK
        ends = {"abort": RolloutState.ABORTED, "withdraw": withdrawn, "expire": RolloutState.EXPIRED}
        expected = ends[how]
        self.progress = getattr(state_machine, how)(self.progress)
        assert self.progress.state is expected
        assert self.progress.challenger_percent == 0
        self.moves, self.ended = self.moves + 1, True

    @precondition(lambda self: not self.ended)
    @rule()
    def pause(self) -> None:
        before = self.progress
        self.progress = state_machine.pause(self.progress)
        assert self.progress.challenger_percent == before.challenger_percent
        self.moves += 0 if self.paused else 1
        self.paused = True

    @rule()
    def resume(self) -> None:
        if not self.paused or self.ended:
            with pytest.raises(NotPaused):
                state_machine.resume(self.progress)
            return
        self.progress, self.moves, self.paused = state_machine.resume(self.progress), self.moves + 1, False

    @precondition(lambda self: self.ended)
    @rule(how=st.sampled_from(["abort", "withdraw", "expire", "pause"]))
    def an_end_is_final(self, how: str) -> None:
        with pytest.raises(RolloutEnded):
            getattr(state_machine, how)(self.progress)
        with pytest.raises(RolloutEnded):
            state_machine.advance(self.progress, self.policy)

    @invariant()
    def agrees_with_the_counter(self) -> None:
        assert self.progress.step == self.moves
        assert self.progress.active is not self.ended
        if self.ended:
            return
        assert (self.progress.state is RolloutState.PAUSED) == self.paused
        state = self.progress.resume_to if self.paused else self.progress.state
        early = (RolloutState.PENDING_LOAD, RolloutState.SHADOW)
        assert state is (early[self.position] if self.position < 2 else RolloutState.CANARY)
        assert self.progress.challenger_percent == (0.0, 0.0, *self.percents)[self.position]


TestRolloutMachine = RolloutMachine.TestCase
