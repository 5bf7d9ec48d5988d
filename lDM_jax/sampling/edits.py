"""A request and its edits midway: all that makes a steered picture again.

Owns the record of a trajectory that somebody steered: JSON with the fields of a request
and, beside them, `edits` (a list of changes, each with the step after which it holds)
and `until` (the step whose clean estimate is the picture, if it is not the last one).
`sample.py --request` and the studio read and write it. Reading order: Edit,
EditedTrajectory, `from_record`, `replay`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.pipeline import Pipeline
from lDM_jax.sampling.request import Request

FIELDS = ("edits", "until")


class Edit(NamedTuple):
    """Fields of the request that hold for the steps after `step`."""

    step: int
    changes: dict

    def embedded(self) -> "Edit":
        """The same with the pixels of its files, as `Request.embedded`."""
        request = Request(**self.changes).embedded()
        return Edit(self.step, {name: getattr(request, name) for name in self.changes})


@dataclasses.dataclass(frozen=True)
class EditedTrajectory:
    """request: as the trajectory began; edits in the order of their steps.

    until: the step whose clean estimate was taken; None for the end.
    """

    request: Request
    edits: Sequence[Edit] = ()
    until: int | None = None

    @property
    def final(self) -> Request:
        """The request as it stands after all edits."""
        request = self.request
        for edit in self.edits:
            request = dataclasses.replace(request, **edit.changes)
        return request

    def embedded(self) -> "EditedTrajectory":
        """The same with the pixels of all files, as `Request.embedded`."""
        edits = tuple(edit.embedded() for edit in self.edits)
        return EditedTrajectory(self.request.embedded(), edits, self.until)

    def record(self) -> dict:
        """JSON of it, with the pixels of all files inside."""
        whole = self.embedded()
        edits = [
            {"step": step, **{name: request_lib.plain(v) for name, v in new.items()}}
            for step, new in whole.edits
        ]
        until = {} if self.until is None else {"until": self.until}
        return {**whole.request.record(), "edits": edits, **until}


def from_record(stored: dict) -> EditedTrajectory:
    """The trajectory of a record. UserError for what does not describe one."""
    rest = {name: value for name, value in stored.items() if name not in FIELDS}
    request, until = request_lib.from_record(rest), stored.get("until")
    edits = stored.get("edits") or []
    if not isinstance(edits, list):
        raise UserError(f"edits is {type(edits).__name__}: give a list")
    edits = [_edit(edit) for edit in edits]
    if not all(a.step <= b.step for a, b in zip(edits, edits[1:], strict=False)):
        raise UserError("the edits of a request go by rising steps")
    if until is not None and not is_count(until):
        raise UserError(f"until is {until!r}: give the number of a step")
    return EditedTrajectory(request, tuple(edits), until)


def is_count(value: object) -> bool:
    """Is it a whole number from 0 on?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _edit(stored: object) -> Edit:
    if not isinstance(stored, dict) or not is_count(stored.get("step")):
        raise UserError("an edit of a request needs the number of its step")
    changes = {name: value for name, value in stored.items() if name != "step"}
    request = request_lib.from_record(changes)  # refuses what is no field
    return Edit(stored["step"], {name: getattr(request, name) for name in changes})


def replay(pipe: Pipeline, trajectory: EditedTrajectory) -> np.ndarray:
    """The pictures of a trajectory, one a seed: uint8 "b H W 3".

    Bit for bit those that were steered, on the same machine: by the same programs.
    """
    step = pipe.begin(trajectory.request)
    edits = list(trajectory.edits)
    last = step.total if trajectory.until is None else trajectory.until
    while True:
        while edits and edits[0].step <= step.step:
            pipe.update(step, **edits.pop(0).changes)
        if step.step >= min(last, step.total):
            return pipe.finish(step)
        step = next(pipe.resume(step))
