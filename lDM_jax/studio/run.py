"""One trajectory that is being steered: `Run`.

Owns its steps so far, what was changed between them, and the branches: going back to a
step forgets what came after it. Every step is one of `Pipeline.resume`; no diffusion
here. Changes may be announced from another thread at any time and hold from the next
step on. Bounded: of many large steps every second one is forgotten.
"""

import dataclasses
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.sampling.edits import Edit, EditedTrajectory
from lDM_jax.sampling.pipeline import Pipeline, Step, shapes
from lDM_jax.sampling.request import Request

MARKS_BYTES = 64 * 2**20  # of the latents of all steps that can be returned to
RESTARTING = ("strength",)  # changes where the trajectory begins: it begins anew


class Mark(NamedTuple):
    """A step that can be returned to, and its small image uint8 "h w 3"."""

    step: Step
    preview: np.ndarray


class Run:
    """A trajectory of one seed.

    script: edits that it makes by itself; until: the step at which it ends, its last
    one if None.
    """

    def __init__(
        self,
        pipe: Pipeline,
        model: str,
        request: Request,
        *,
        script: Sequence[Edit] = (),
        until: int | None = None,
    ):
        self.pipe, self.model = pipe, model
        self._lock = threading.Lock()
        self._pending: dict = {}
        self._script = list(script)
        self._until = until
        self._begin(request)

    def _begin(self, request: Request) -> None:
        step = self.pipe.begin(request)
        self._first, self.edits = step.prepared.request, []
        self.marks = [Mark(step, self.pipe.preview(step.z)[0])]

    @property
    def step(self) -> int:
        """How far it is; `total` at the end."""
        return self.marks[-1].step.step

    @property
    def total(self) -> int:
        return self.marks[-1].step.total

    @property
    def last(self) -> int:
        """The step at which it ends."""
        return self.total if self._until is None else min(self._until, self.total)

    @property
    def made(self) -> int:
        """How many steps were made."""
        return self.step - self.marks[0].step.step

    @property
    def begun(self) -> bool:
        """Is there a step whose image can be seen?"""
        return len(self.marks) > 1

    @property
    def done(self) -> bool:
        return self.step >= self.last

    @property
    def request(self) -> Request:
        """What the next step follows, announced changes included."""
        with self._lock:
            pending = dict(self._pending)
        return dataclasses.replace(self.marks[-1].step.prepared.request, **pending)

    @property
    def program(self) -> tuple:
        """What the next step is compiled for."""
        prepared = self.marks[-1].step.prepared
        structure, extents = shapes(prepared.inputs)
        return self.model, prepared.spec, structure, tuple(extents)

    def edit(self, changes: dict) -> None:
        """Announce changes of the request for the next step. UserError for bad ones."""
        self.pipe.resolve(dataclasses.replace(self.request, **changes))
        with self._lock:
            self._pending.update(changes)

    def advance(self) -> Mark:
        """One step, after the changes that were announced.

        UserError for changes that cannot be made midway; they are forgotten then.
        """
        with self._lock:
            changes, self._pending = self._pending, {}
        while self._script and self._script[0].step <= self.step:
            changes = {**self._script.pop(0).changes, **changes}
        at = dataclasses.replace(self.marks[-1].step)
        if changes:
            at = self._change(at, changes)
        step = next(self.pipe.resume(at))
        mark = Mark(step, self.pipe.preview(step.z0_hat)[0])
        self.marks.append(mark)
        self._forget()
        return mark

    def _change(self, at: Step, changes: dict) -> Step:
        if not self.begun or any(name in RESTARTING for name in changes):
            self._begin(dataclasses.replace(at.prepared.request, **changes))
            return dataclasses.replace(self.marks[-1].step)
        self.pipe.update(at, **changes)
        self.edits.append(Edit(at.step, changes))
        return at

    def rewind(self, step: int) -> set[str]:
        """Back to the last kept step at or before `step`; what came after is lost.

        Returns the names of the fields whose changes are undone by it.
        """
        kept = [mark for mark in self.marks if mark.step.step <= step]
        self.marks = kept or self.marks[:1]
        undone = [edit.changes for edit in self.edits if edit.step >= self.step]
        self.edits = [edit for edit in self.edits if edit.step < self.step]
        undone += [edit.changes for edit in self._script]
        self._script, self._until = [], None
        with self._lock:
            undone.append(self._pending)
            self._pending = {}
        return {name for changes in undone for name in changes}

    def _forget(self) -> None:
        sizes = [sum(x.nbytes for x in mark.step.carry[:3]) for mark in self.marks]
        if sum(sizes) > MARKS_BYTES and len(self.marks) > 8:
            self.marks = [*self.marks[:-1:2], self.marks[-1]]

    def record(self) -> dict:
        """What makes the image at this step again, as JSON: request, edits, model."""
        until = None if self.step == self.total else self.step
        edited = EditedTrajectory(self._first, tuple(self.edits), until)
        return {"model": self.model, **edited.record()}

    def look(self) -> np.ndarray:
        """The image at this step by the full decoder, uint8 "H W 3"."""
        if not self.begun:
            raise UserError("there is nothing to see before the first step")
        return self.pipe.finish(self.marks[-1].step)[0]
