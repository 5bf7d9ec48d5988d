"""Weights & Biases, for those who set config.train.wandb to a project's name.

The only file that knows wandb, which is imported when asked for and needed by nothing
else. A run that continues goes on in the same run there: its id lies in the work
directory. Offline use (WANDB_MODE=offline) and the account are wandb's own settings.
"""

import importlib.util
import uuid
from typing import Any

from lDM_jax.core.distributed import is_first
from lDM_jax.core.errors import UserError
from lDM_jax.training.workdir import WorkDirectory

ID_FILE = ".wandb_id"


def open_run(project: str, directory: WorkDirectory) -> Any:
    """The run of a work directory: `log(values, step=...)` and `finish()`.

    None in all processes but the first. UserError, in all of them, if wandb is not
    installed; in the first if it does not start.
    """
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.train.wandb = {project!r} needs the package wandb: pip install "
            'wandb, or leave it ""; metrics.jsonl, TensorBoard and report.html are '
            "written in any case"
        )
    if not is_first():
        return None
    import wandb

    file = directory.path / ID_FILE
    if not file.exists():
        file.write_text(uuid.uuid4().hex)
    try:
        return wandb.init(
            project=project,
            name=directory.path.name,
            id=file.read_text().strip(),
            resume="allow",
            dir=str(directory.path),
            config=directory.stored_config,
        )
    except Exception as error:  # of any kind: network, account, settings
        line = " ".join(str(error).split())[:200]
        raise UserError(
            f"wandb does not start ({line}); WANDB_MODE=offline needs no network"
        ) from None
