"""Reads ahead in a thread, so that the model does not wait for the object store."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
AHEAD = 2
"""Items that are read before they are needed, which bounds their memory."""
_POLL_SECONDS = 0.1


@contextmanager
def prefetched(items: Iterable[T]) -> Iterator[Iterator[T]]:
    """The items, in order, read by a thread that ends with the context. Raises what reading raises."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(last: bool, item: Any) -> bool:
        while not stop.is_set():
            try:
                waiting.put((last, item), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for item in items:
                if not put(False, item):
                    return
            put(True, None)
        except BaseException as error:  # noqa: BLE001 - raised where the items are used
            put(True, error)

    def results() -> Iterator[T]:
        while True:
            last, item = waiting.get()
            if not last:
                yield item
            elif item is not None:
                raise item
            else:
                return

    thread = threading.Thread(target=read, name="read ahead", daemon=True)
    thread.start()
    try:
        yield results()
    finally:
        stop.set()
        thread.join()
