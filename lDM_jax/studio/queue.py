"""Several people share the devices: first come, first served, one step at a time.

Whoever has made a step of a trajectory goes to the end of the queue, so that those of
several people advance side by side, and none waits for the end of another's. Knows
nothing of models.
"""

import threading
from collections import deque


class FairLock:
    """`with lock: ...` runs alone, in the order of arrival."""

    def __init__(self):
        self._lock = threading.Lock()
        self._queue: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._lock:
            self._queue.append(mine)
            if self._queue[0] is mine:
                mine.set()
        mine.wait()

    def __exit__(self, *error) -> None:
        with self._lock:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()

    @property
    def waiting(self) -> int:
        """How many are in the queue, with the one that runs."""
        return len(self._queue)
