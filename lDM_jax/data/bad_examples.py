"""Examples that cannot be used: counted, listed in a file; too many stop the run."""

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from lDM_jax.core.errors import UserError

log = logging.getLogger(__name__)

LOGGED = 5  # of each run; all are in the file
SETTLED = 1000  # examples before the share of bad ones counts


class Ledger:
    """The bad examples of one source that a run has met.

    length: of the source. path: a file of JSON lines {"index": ..., "reason": ...}, one
    for each bad example ever met; created at the first one. max_share: of the examples
    so far (of SETTLED, or all, while they are fewer); more raise UserError.
    """

    def __init__(self, length: int, *, path: Path | None = None, max_share: float = 1):
        if not 0.0 <= max_share <= 1.0:
            raise UserError(
                f"config.data.max_bad_share = {max_share}: give a share in [0, 1]"
            )
        self.length, self.path, self.max_share = length, path, max_share
        self.reasons: dict[int, str] = {}
        self._examined, self._listed = 0, self._read()

    def _read(self) -> set[int]:
        if self.path is None or not self.path.exists():
            return set()
        indices = set()
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                indices.add(int(json.loads(line)["index"]))
            except (ValueError, KeyError, TypeError):
                continue  # half a line, of a run that was killed
        return indices

    @property
    def first(self) -> str:
        """The reason of the first one; "" without any."""
        return next(iter(self.reasons.values()), "")

    def add(self, skipped: Iterable, *, examined: int) -> None:
        """Record (index, reason) of skipped examples and how many were examined."""
        self._examined = min(self.length, self._examined + examined)
        new = {index: reason for index, reason in skipped if index not in self.reasons}
        if not new:
            return
        self.reasons |= new
        unlogged = max(0, LOGGED - len(self.reasons) + len(new))
        for reason in list(new.values())[:unlogged]:
            log.warning("example left out: %s", reason)
        self._write({i: reason for i, reason in new.items() if i not in self._listed})
        least = min(self.length, SETTLED)
        if len(self.reasons) > self.max_share * max(self._examined, least):
            raise UserError(
                f"{len(self.reasons)} of {max(self._examined, least)} examples cannot "
                f"be used, more than config.data.max_bad_share = {self.max_share}: "
                f"{self.first}"
                + ("" if self.path is None else f"; the list is {self.path}")
            )

    def _write(self, new: dict[int, str]) -> None:
        if self.path is None or not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        begun = self.path.exists() and self.path.read_bytes()[-1:] not in (b"", b"\n")
        with open(self.path, "a") as file:
            file.write("\n" * begun)  # after half a line of a run that was killed
            for index, reason in new.items():
                file.write(json.dumps({"index": index, "reason": reason}) + "\n")
        self._listed |= new.keys()
