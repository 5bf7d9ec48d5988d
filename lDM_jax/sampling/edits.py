"""A request and what was changed on the way: all that makes a steered picture again.

Owns the record of a trajectory that somebody steered: JSON with the fields of a request
and, beside them, `edits` (a list of changes, each with the step after which it holds)
and `until` (the step whose clean estimate is the picture, if it is not the last one).
`sample.py --request` and the studio read and write it. Reading order: Edit, Timeline,
`from_record`, `draw`.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling import request as request_lib
from lDM_jax.sampling.pipeline import Pipeline, Step
from lDM_jax.sampling.request import Request

FIELDS = ("edits", "until")


class Edit(NamedTuple):
    """Fields of the request that hold for the steps after `step`."""

    step: int
    changes: dict


@dataclasses.dataclass(frozen=True)
class Timeline:
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

    def record(self) -> dict:
        """JSON of it, with the pixels of all files inside."""
        edits = [
            {"step": edit.step, **changed(self.request, edit.changes)}
            for edit in self.edits
        ]
        until = {} if self.until is None else {"until": self.until}
        return {**self.request.embedded().record(), "edits": edits, **until}


def changed(request: Request, changes: dict) -> dict:
    """Changes of a request as JSON, with the pixels of their files inside."""
    given = dataclasses.replace(request, **changes).embedded()
    return {name: request_lib.plain(getattr(given, name)) for name in changes}


def from_record(stored: dict) -> Timeline:
    """The timeline of a record. UserError for what is none."""
    rest = {name: value for name, value in stored.items() if name not in FIELDS}
    request, until = request_lib.from_record(rest), stored.get("until")
    edits = [_edit(edit, request) for edit in as_list(stored.get("edits") or [])]
    if not all(a.step <= b.step for a, b in zip(edits, edits[1:], strict=False)):
        raise UserError("the edits of a request go by rising steps")
    if until is not None and not is_count(until):
        raise UserError(f"until is {until!r}: give the number of a step")
    return Timeline(request, tuple(edits), until)


def as_list(value: object) -> list:
    """The value itself. UserError for anything but a list."""
    if not isinstance(value, list):
        raise UserError(f"edits is {type(value).__name__}: give a list")
    return value


def is_count(value: object) -> bool:
    """Is it a whole number from 0 on?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _edit(stored: object, request: Request) -> Edit:
    if not isinstance(stored, dict) or not is_count(stored.get("step")):
        raise UserError("an edit of a request needs the number of its step")
    changes = {name: value for name, value in stored.items() if name != "step"}
    read = request_lib.from_record(changes)  # refuses what is no field
    return Edit(stored["step"], {name: getattr(read, name) for name in changes})


def draw(pipe: Pipeline, timeline: Timeline) -> np.ndarray:
    """The pictures of a timeline, one a seed: uint8 "b H W 3".

    Bit for bit those that were steered, on the same machine: by the same programs.
    """
    step = pipe.begin(pipe.resolved(timeline.request))
    waiting = list(timeline.edits)
    last = step.total if timeline.until is None else timeline.until
    while True:
        while waiting and waiting[0].step <= step.step:
            pipe.update(step, **waiting.pop(0).changes)
        if step.step >= min(last, step.total):
            return finish(pipe, step)
        step = next(pipe.resume(step))


def finish(pipe: Pipeline, step: Step) -> np.ndarray:
    """The pictures of a step by the full decoder: uint8 "b H W 3".

    Of the last step its latents; of an earlier one their clean estimate.
    """
    request = step.plan.request
    given = pipe.planner.canvas(request)
    z0 = step.z if step.step == step.total else step.z0_hat
    return pipe.finish(z0, request, given)
