"""Files that torch itself writes, and what torch says they hold.

    python -m tests.reference.record_torch

writes into torch/: `zip.pt` and `stacked.pt` (the two formats of torch.save, the same
entries), `entries.npz` (their arrays; bfloat16 widened), and `toy_kl.ckpt`: the state
dict of `toy` in f16, inside what the original's trainer stores around it. All of its
tensors are views of one storage, which keeps it small.
"""

import numpy as np
import torch

from tests.reference import rule, toy

FOLDER = rule.FOLDER / "torch"


def entries() -> dict[str, torch.Tensor]:
    """Every element type, and every way in which a tensor may lie in its storage."""
    base = torch.from_numpy(rule.noise("torch", (60,)))
    return {
        "plain": base.view(3, 4, 5).clone(),
        "transposed": base.view(3, 4, 5).transpose(0, 2),
        "every_third": base[2::3],
        "shared_row": base.view(12, 5)[7],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": base[:6].half(),
        "bfloat16": base[6:11].bfloat16(),
        "double": base[:4].double() / 3,
        "int64": torch.tensor([[2**40, -1]]),
        "int32": torch.tensor([7, -7], dtype=torch.int32),
        "int8": torch.tensor([-128, 127], dtype=torch.int8),
        "uint8": torch.tensor([255, 1], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "parameter": torch.nn.Parameter(base[20:24].clone()),
    }


def plain(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor; bfloat16 as f32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def toy_checkpoint() -> dict:
    """What the trainer of the original program stores, with a toy network in it."""
    base = torch.from_numpy(toy.numbers())
    state_dict = {
        name: base[: array.size].view(array.shape)
        for name, array in toy.state_dict().items()
    }
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    return {
        "epoch": 3,
        "global_step": 1234,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {torch.nn.Module: {"best": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "state_dict": state_dict,
    }


def main() -> None:
    """Write all recorded files."""
    FOLDER.mkdir(exist_ok=True)
    found = entries()
    torch.save(found, FOLDER / "zip.pt")
    old = {"_use_new_zipfile_serialization": False}
    torch.save({"state_dict": found}, FOLDER / "stacked.pt", **old)
    arrays = {name: plain(tensor) for name, tensor in found.items()}
    np.savez_compressed(FOLDER / "entries.npz", **arrays)
    torch.save(toy_checkpoint(), FOLDER / "toy_kl.ckpt")


if __name__ == "__main__":
    main()
