"""What one person has: the run, the gallery, the uploads. All of it is bounded.

A session is known by the key of its browser tab, is dropped when the tab closes or when
it was idle for long, and shares nothing with others but the models.
"""

import dataclasses
import json
import threading
import time
from collections.abc import Callable

import numpy as np

from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.sampling.request import Request
from lDM_jax.studio.run import Run

MAX_SESSIONS = 32
IDLE_SECS = 1800.0
MAX_DRAWINGS = 48
GALLERY_BYTES = 48 * 2**20  # of a session's drawings with their records


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An image uint8 "H W 3" that was drawn here, with all that makes it again.

    number: counts from 1 in its session; text: the record as JSON; parent: the number
    of the drawing it was made from, 0 for none.
    """

    number: int
    pixels: np.ndarray
    text: str
    title: str
    parent: int = 0

    @property
    def record(self) -> dict:
        return json.loads(self.text)

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + len(self.text)

    def png(self) -> bytes:
        """The file that holds the image and its record."""
        return pixels_lib.png(self.pixels, request=self.record)


class Session:
    """One browser tab's state; `lock` is held while a step is made."""

    def __init__(self, key: str):
        self.key = key
        self.lock = threading.RLock()
        self.used_secs = time.monotonic()
        self.closed = False
        self.run: Run | None = None
        self.tab = "text"
        self.request: Request | None = None  # what the controls asked for last
        self.command = "stop"  # what the player is to do: play, pause or stop
        self.player = 0  # the number of the newest player
        self.spent_secs = 0.0
        self.pace_secs = 0.0
        self.sharp = False
        self.inputs: dict[str, np.ndarray] = {}
        self.gallery: list[Drawing] = []
        self.current: Drawing | None = None
        self.opened = None  # a file that is about to be drawn again
        self._count = 0

    def keep(self, pixels: np.ndarray, record: dict, title: str, parent=0) -> Drawing:
        """Add an image to the gallery; the oldest go when there are too many."""
        drawing = self.show(pixels, record, title, parent)
        self.gallery.append(drawing)
        while len(self.gallery) > 1 and (
            len(self.gallery) > MAX_DRAWINGS
            or sum(each.nbytes for each in self.gallery) > GALLERY_BYTES
        ):
            self.gallery.pop(0)
        return drawing

    def show(self, pixels: np.ndarray, record: dict, title: str, parent=0) -> Drawing:
        """An image becomes the current one and stays out of the gallery."""
        self._count += 1
        text = json.dumps(record, sort_keys=True)
        self.current = Drawing(self._count, pixels, text, title, parent)
        return self.current

    def find(self, number: int) -> Drawing | None:
        """The drawing of that number, if it is still there."""
        return next((each for each in self.gallery if each.number == number), None)

    def begin(self, run: Run, *, fresh: bool = True) -> int:
        """A new player takes over; the number by which `plays` knows it."""
        with self.lock:
            self.run, self.command = run, "play"
            self.player += 1
            if fresh:
                self.spent_secs = 0.0
            return self.player

    def plays(self, player: int) -> bool:
        """Is that player still the newest, and the tab open?"""
        return not self.closed and self.player == player

    def close(self) -> None:
        """End the player and let go of everything."""
        self.closed, self.command = True, "stop"
        self.run = self.current = self.request = None
        self.gallery, self.inputs = [], {}


class Sessions:
    """All sessions by key; the idle ones go, and the longest idle when too many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, key: str) -> Session:
        """The session of a key, made if it is not there."""
        now = self._clock()
        with self._lock:
            session = self._sessions.pop(key, None) or Session(key)
            session.used_secs = now
            self._sessions[key] = session  # the last one: most recently used
            stale = [
                each
                for place, each in enumerate(reversed(self._sessions.values()))
                if place >= MAX_SESSIONS or now - each.used_secs > IDLE_SECS
            ]
            for each in stale:
                del self._sessions[each.key]
        for each in stale:
            each.close()
        return session

    def drop(self, key: str) -> None:
        """Forget a session: its tab was closed."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()
