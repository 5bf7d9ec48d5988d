"""Several people share the devices: first come, first served, one step at a time.

A step of a trajectory is a turn. Who has had one goes to the end of the line, so that
trajectories of several people advance side by side, and none waits for the end of
another's. Knows nothing of models.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """`with turns.turn(): ...` runs alone, in the order of arrival."""

    def __init__(self):
        self._lock = threading.Lock()
        self._line: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn; the next in line begins when the block ends."""
        mine = threading.Event()
        with self._lock:
            self._line.append(mine)
            if self._line[0] is mine:
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._lock:
                self._line.popleft()
                if self._line:
                    self._line[0].set()

    @property
    def waiting(self) -> int:
        """How many are in line, with the one whose turn it is."""
        return len(self._line)
