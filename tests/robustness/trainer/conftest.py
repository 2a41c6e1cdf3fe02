"""Fixtures of the robustness tests of the trainer: those of its integration tests."""

from tests.integration.trainer.conftest import peers, start_trainer, trainer_settings, with_peers, with_ray

__all__ = ["peers", "start_trainer", "trainer_settings", "with_peers", "with_ray"]
