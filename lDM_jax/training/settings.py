"""What the loop has to know of a config: its numbers, and what is due at a step."""

import dataclasses
from typing import NamedTuple

from ml_collections import ConfigDict

from lDM_jax.core.errors import UserError
from lDM_jax.training.update_guard import Limits
from lDM_jax.weights.checkpoint import Keep


def is_due(step: int, every: int, last: int) -> bool:
    """True at multiples of `every` (0: never) and at the last step."""
    return every > 0 and (step % every == 0 or step == last)


class Due(NamedTuple):
    """What happens after a step: a checkpoint, a snapshot of the averages, a look.

    judges: `Experiment.judge` measures samples.
    """

    saves: bool
    averages: bool
    previews: bool
    evaluates: bool
    judges: bool

    @property
    def measures(self) -> bool:
        """Whether there are figures."""
        return self.evaluates or self.judges


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """The numbers of the loop; an interval of 0 steps is never.

    wandb: the project at Weights & Biases, or "".
    """

    seed: int
    batch_size: int
    num_steps: int
    accumulate_steps: int
    log_every_steps: int
    preview_every_steps: int
    eval_every_steps: int
    judge_every_steps: int
    checkpoint_every_steps: int
    averages_every_steps: int
    limits: Limits
    keep: Keep
    wandb: str

    def due(self, step: int, *, stopping: bool = False) -> Due:
        """What is due after a step; at the last one, in any case a checkpoint."""

        def at(every: int) -> bool:
            return is_due(step, every, self.num_steps)

        return Due(
            at(self.checkpoint_every_steps) or stopping or step == self.num_steps,
            at(self.averages_every_steps),
            at(self.preview_every_steps),
            at(self.eval_every_steps),
            at(self.judge_every_steps),
        )


def loop_settings(config: ConfigDict, *, judged: bool = False) -> LoopSettings:
    """The settings in config.train; judged: whether samples can be measured at all.

    UserError if "best" is never measured.
    """
    train = config.train
    if train.keep_best and not train.eval_every_steps:
        raise UserError(
            f"config.train.keep_best = {train.keep_best} needs eval_every_steps above "
            "0, best a multiple of checkpoint_every_steps"
        )
    averages = 0  # only second stages have averages for `training.posthoc_ema`
    if train.get("ema_stds", ()):
        averages = train.ema_snapshot_every_steps or train.checkpoint_every_steps
    names = {field.name for field in dataclasses.fields(LoopSettings)}
    return LoopSettings(
        **{name: value for name, value in train.items() if name in names},
        seed=config.seed,
        judge_every_steps=train.fd_every_steps if judged else 0,
        averages_every_steps=averages,
        limits=Limits(train.max_skipped_steps, train.skip_spike_sigmas),
        keep=Keep(
            latest=train.keep_checkpoints,
            every_steps=train.keep_every_steps,
            best=train.keep_best,
            metric=train.best_metric,
            mode=train.best_mode,
        ),
    )
