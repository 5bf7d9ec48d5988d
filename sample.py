"""Draw pictures from a trained model: flags -> Request -> Pipeline -> one PNG a seed.

    python sample.py --model=emoji --prompt="red heart" --seeds=0-15 --out=samples

What:  --model --prompt (may be repeated) --negative --label --seeds --request
How:   --steps --guidance --eta --sampler
Where: --out

Every PNG holds the request that made it, `--request=FILE.png` makes it again. A grid of
all pictures lies beside them. User errors exit with code 2.
"""

import dataclasses
import os
import re
import sys
from pathlib import Path

from absl import flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Shipped name, work directory or weights directory.")
flags.DEFINE_multi_string("prompt", None, "What to draw; repeat for several.")
flags.DEFINE_string("negative", "", "What to steer away from.")
flags.DEFINE_integer("label", None, "Class index, for class-conditional models.")
flags.DEFINE_string("seeds", "0-3", "Seeds: 7, or 0-15, or 1,5,9-12.")
flags.DEFINE_string("request", None, "A PNG made by this program: make it again.")
flags.DEFINE_integer("steps", None, "Sampling steps; the model's default if unset.")
flags.DEFINE_float("guidance", None, "Guidance scale; 1 switches guidance off.")
flags.DEFINE_float("eta", 0.0, "DDIM noise: 0 deterministic, 1 ancestral.")
flags.DEFINE_string("sampler", None, "Sampler name, e.g. ddim.")
flags.DEFINE_string("out", "samples", "Directory for the pictures.")

MAX_SEEDS = 100_000


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0-3,7" -> (0, 1, 2, 3, 7). Raises ValueError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise ValueError(f"--seeds={text}: give numbers as in 7, 0-15 or 1,5,9-12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_SEEDS:
            raise ValueError(
                f"--seeds={text}: {part} must rise and hold at most {MAX_SEEDS} seeds"
            )
        seeds.extend(range(first, last + 1))
    return tuple(seeds)


def slug(prompt: str | None) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", (prompt or "").lower()).strip("-")[:40]


def requests():
    """(model name, requests) that the flags ask for."""
    from lDM_jax import image
    from lDM_jax.arrays import UserError
    from lDM_jax.pipeline import Request

    if FLAGS.request is not None:
        try:
            stored = image.read_request(FLAGS.request)
        except OSError as error:
            raise UserError(f"--request={FLAGS.request}: no picture: {error}") from None
        if stored is None:
            raise UserError(f"--request={FLAGS.request} holds no request")
        model = stored.pop("model")
        stored["seeds"] = tuple(stored["seeds"])
        return FLAGS.model or model, [Request(**stored)]
    if FLAGS.model is None:
        raise UserError("--model is required, e.g. --model=emoji")
    common = dict(
        negative=FLAGS.negative,
        label=FLAGS.label,
        seeds=parse_seeds(FLAGS.seeds),
        sampler=FLAGS.sampler,
        steps=FLAGS.steps,
        guidance=FLAGS.guidance,
        eta=FLAGS.eta,
    )
    prompts = FLAGS.prompt or [None]
    return FLAGS.model, [Request(prompt=prompt, **common) for prompt in prompts]


def output_directory() -> Path:
    """--out, created. Raises UserError if it cannot be written to."""
    from lDM_jax.arrays import UserError

    out = Path(FLAGS.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise UserError(f"--out={out} cannot be used: {error}") from None
    return out


def draw(model: str, wanted: list) -> None:
    """All pictures of all requests, each written as soon as it is there, and a grid."""
    import numpy as np
    from tqdm import tqdm

    from lDM_jax import image
    from lDM_jax.pipeline import Pipeline
    from lDM_jax.training.checkpoint import quiet_orbax

    quiet_orbax()
    out = output_directory()
    pipe = Pipeline.load(model)
    wanted = [pipe.resolved(request) for request in wanted]
    pictures = []
    with tqdm(total=sum(len(r.seeds) for r in wanted), unit="img") as progress:
        for request in wanted:
            name = slug(request.prompt)
            prefix = f"{name}_" if len(wanted) > 1 else ""
            for seed, pixels in zip(request.seeds, pipe.run(request), strict=True):
                one = dataclasses.asdict(dataclasses.replace(request, seeds=(seed,)))
                path = out / f"{prefix}{seed:06d}.png"
                image.write_png(path, pixels, request={"model": model, **one})
                pictures.append(pixels)
                progress.update()
    columns = len(wanted[0].seeds) if len(wanted) > 1 else None
    image.write_png(out / "grid.png", image.grid(np.stack(pictures), columns=columns))
    progress.write(f"{len(pictures)} pictures and grid.png in {out}")


def fail(error: object) -> None:
    """One line on stderr, exit code 2."""
    os.write(2, f"sample.py: error: {' '.join(str(error).split())}\n".encode())
    raise SystemExit(2)


def main(argv: list[str]) -> int:
    try:
        FLAGS(argv)
        draw(*requests())
    except flags.Error as error:
        fail(error)
    except (ValueError, OSError) as error:
        fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
