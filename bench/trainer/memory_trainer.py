"""A trainer over adapters in memory as a process: prints its address, and ends with its standard input."""

from __future__ import annotations

import sys

from tests.support.servers.restarted_trainer import RestartedTrainer


def main() -> None:
    trainer = RestartedTrainer()
    trainer.start()
    print(trainer.address, file=sys.stderr, flush=True)
    sys.stdin.read()
    trainer.close()


if __name__ == "__main__":
    main()
