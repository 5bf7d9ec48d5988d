"""Draw pictures from a trained model: flags -> Request -> Pipeline -> one PNG a seed.

    python sample.py --model=emoji --prompt="red heart" --seeds=0-15 --out=samples

What:  --model --prompt (may be repeated) --negative --label --layout --segmentation
       --image --mask --strength --source --regions --target --seeds --size --request
How:   --steps --guidance --rescale --interval --eta --sampler --spacing --regional
       --window --guide --autoguidance --classifier --classifier_scale --target_scale
       --target_loss --interpolate
Where: --out --animation --save_request, or --num --npz (--batch) for evaluators

An image is enlarged by a super-resolution model, completed under --mask by an
inpainting model, and changed by any other model: as a whole by --strength, only under
--mask, or from its own noise (--source, its description).

Every PNG holds the request that made it, `--request=FILE.png` makes it again, and
--save_request=FILE.json writes it with the pixels of its files inside. A grid of all
pictures lies beside them. User errors exit with code 2.
"""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

from absl import flags

from lDM_jax.core.startup import error_line, prepare, show_help

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "Shipped name, work directory or weights directory.")
flags.DEFINE_multi_string("prompt", None, "What to draw; repeat for several.")
flags.DEFINE_string("negative", "", "What to steer away from.")
flags.DEFINE_string(
    "label", None, "Class, by name or number, for class-conditional models."
)
flags.DEFINE_string("layout", None, "JSON: [[label, [left, top, width, height]], ...]")
flags.DEFINE_string(
    "segmentation", None, "Label map: a grey PNG whose values are labels."
)
flags.DEFINE_string("image", None, "Picture to enlarge, complete or change.")
flags.DEFINE_string(
    "mask", None, "Picture that is not black where there is to be painted."
)
flags.DEFINE_float(
    "strength", 1.0, "How much of the image may change: above 0, up to 1."
)
flags.DEFINE_string(
    "source", None, "What --image shows: draw from the noise that leads to it."
)
flags.DEFINE_string("target", None, "Picture, usually small, to pull the result to.")
flags.DEFINE_float("target_scale", 1.0, "How strongly --target pulls.")
flags.DEFINE_string("target_loss", "l2", "l2 or lpips, at the target's size.")
flags.DEFINE_string("lpips", "", "VGG16 file for --target_loss=lpips; else downloaded.")
flags.DEFINE_string(
    "regions", None, "JSON: [[prompt, [left, top, width, height] or mask file], ...]"
)
flags.DEFINE_string("regional", "attention", "Where regions act: attention or latent.")
flags.DEFINE_integer("window", 0, "Side in pixels of overlapping windows; 0 for none.")
flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; the model's own if unset.")
flags.DEFINE_string("seeds", "0-3", "Seeds: 7, or 0-15, or 1,5,9-12.")
flags.DEFINE_string(
    "request", None, "A PNG made by this program, or JSON of a request."
)
flags.DEFINE_integer("steps", None, "Sampling steps; the model's default if unset.")
flags.DEFINE_float("guidance", None, "Guidance scale; 1 switches guidance off.")
flags.DEFINE_float(
    "rescale", 0.0, "Share of the guided prediction brought to its old deviation."
)
flags.DEFINE_string(
    "interval", None, "LOW,HIGH: guide only there; 0 is clean, 1 is noise."
)
flags.DEFINE_string("guide", "", "A worse model of the same task, for --autoguidance.")
flags.DEFINE_float("autoguidance", 1.0, "Scale away from --guide; 1 is off.")
flags.DEFINE_string("classifier", "", "A model of stage classifier.")
flags.DEFINE_float(
    "classifier_scale", 0.0, "How strongly --classifier pulls to --label."
)
flags.DEFINE_integer(
    "interpolate", None, "That many pictures from each seed to the next."
)
flags.DEFINE_float("eta", 0.0, "DDIM noise: 0 deterministic, 1 ancestral.")
flags.DEFINE_string("sampler", None, "Sampler name, e.g. ddim.")
flags.DEFINE_string(
    "spacing", None, "Times of the steps, e.g. leading, trailing, karras."
)
flags.DEFINE_integer("num", None, "That many pictures into one --npz, for evaluators.")
flags.DEFINE_string("npz", None, "File for --num: arr_0 uint8, resumable.")
flags.DEFINE_integer("batch", 32, "Batch of --num, over all devices.")
flags.DEFINE_string("out", "samples", "Directory for the pictures.")
flags.DEFINE_string(
    "animation", None, "File in --out (.gif, .webp, .png) for the way there."
)
flags.DEFINE_string("save_request", None, "JSON file for the request as a preset.")

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


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "384x1024" -> (384, 1024). Raises ValueError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise ValueError(f"--size={text}: give HEIGHTxWIDTH, as in 256x256")
    return int(match[1]), int(match[2])


def parse_layout(text: str | None) -> list | None:
    """JSON -> [(label, (left, top, width, height)), ...]. Raises ValueError."""
    if text is None:
        return None
    try:
        return [
            (_label(label), tuple(float(side) for side in box))
            for label, box in json.loads(text)
        ]
    except (ValueError, TypeError):
        raise ValueError(
            "--layout is JSON such as [[3, [0.1, 0.2, 0.4, 0.4]]]: label (or its "
            "name), then left, top, width and height in fractions of the picture"
        ) from None


def _label(value) -> int | str:
    """A label's number or its name."""
    return value if isinstance(value, str) else int(value)


def parse_regions(text: str | None) -> list | None:
    """JSON -> [(prompt, box or file), ...]. Raises ValueError."""
    if text is None:
        return None
    try:
        return [
            (
                str(prompt),
                place if isinstance(place, str) else tuple(map(float, place)),
                *map(float, weight),
            )
            for prompt, place, *weight in json.loads(text)
        ]
    except (ValueError, TypeError):
        raise ValueError(
            '--regions is JSON such as [["a dog", [0, 0, 0.5, 1]], ["a cat", '
            '"mask.png"]]: a prompt, then left, top, width and height in fractions of '
            "the picture or the file of a mask, then a weight from 0 to 1 if not 1"
        ) from None


def stored_request(path: str) -> dict:
    """The request inside a PNG of this program, or in a JSON file."""
    from lDM_jax.core import image
    from lDM_jax.core.errors import UserError

    try:
        if path.endswith(".json"):
            stored = json.loads(Path(path).read_text())
        else:
            stored = image.read_request(path)
    except (OSError, ValueError) as error:
        raise UserError(f"--request={path}: no picture or JSON: {error}") from None
    if not isinstance(stored, dict):
        raise UserError(f"--request={path} holds no request")
    return stored


def steered():
    """(model name, timeline) of a --request that was steered on its way, or None."""
    from lDM_jax.sampling import edits

    stored = stored_request(FLAGS.request) if FLAGS.request is not None else {}
    if not stored.keys() & set(edits.FIELDS):
        return None
    model = named_model(stored)
    return model, edits.from_record(stored)


def named_model(stored: dict) -> str:
    """--model, or the model that a stored request names; taken out of the latter."""
    from lDM_jax.core.errors import UserError

    model = FLAGS.model or stored.get("model")
    stored.pop("model", None)
    if not model:
        raise UserError(f"--request={FLAGS.request} names no model: give --model")
    return model


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """ "0.2,0.8" -> (0.2, 0.8). Raises ValueError for anything else."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--interval={text}: give LOW,HIGH, as in 0.2,0.8") from None
    return low, high


def slug(prompt: str | None) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", (prompt or "").lower()).strip("-")[:40]


def requests():
    """(model name, requests) that the flags ask for."""
    from lDM_jax.core.errors import UserError
    from lDM_jax.sampling.request import Request, from_record

    if FLAGS.request is not None:
        stored = stored_request(FLAGS.request)
        return named_model(stored), [from_record(stored)]
    if FLAGS.model is None:
        raise UserError("--model is required, e.g. --model=emoji")
    common = dict(
        negative=FLAGS.negative,
        label=FLAGS.label,
        layout=parse_layout(FLAGS.layout),
        segmentation=FLAGS.segmentation,
        image=FLAGS.image,
        mask=FLAGS.mask,
        strength=FLAGS.strength,
        size_px=parse_size(FLAGS.size),
        window_px=FLAGS.window,
        regions=parse_regions(FLAGS.regions),
        source=FLAGS.source,
        target=FLAGS.target,
        target_scale=FLAGS.target_scale,
        target_loss=FLAGS.target_loss,
        classifier_scale=FLAGS.classifier_scale,
        rescale=FLAGS.rescale,
        interval=parse_interval(FLAGS.interval),
        autoguidance=FLAGS.autoguidance,
        regional=FLAGS.regional,
        seeds=parse_seeds(FLAGS.seeds),
        sampler=FLAGS.sampler,
        steps=FLAGS.steps,
        guidance=FLAGS.guidance,
        eta=FLAGS.eta,
        spacing=FLAGS.spacing,
    )
    prompts = FLAGS.prompt or [None]
    return FLAGS.model, [Request(prompt=prompt, **common) for prompt in prompts]


def output_directory() -> Path:
    """--out, created. Raises UserError if it cannot be written to."""
    from lDM_jax.core.errors import UserError

    out = Path(FLAGS.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("not writable")
    except OSError as error:
        raise UserError(f"--out={out} cannot be used: {error}") from None
    return out


def load(model: str):
    """The pipeline of the flags."""
    from lDM_jax.pipeline import Pipeline
    from lDM_jax.weights.checkpoint import quiet_orbax

    quiet_orbax()
    options = dict(guide=FLAGS.guide, classifier=FLAGS.classifier, lpips=FLAGS.lpips)
    return Pipeline.load(model, **options)


def save_request(model: str, wanted: list) -> None:
    """--save_request: the request with its pixels, for --request."""
    from lDM_jax.core.errors import UserError

    if FLAGS.save_request is None:
        return
    if len(wanted) != 1:
        raise UserError("--save_request holds one request: give one --prompt")
    record = {"model": model, **wanted[0].embedded().record()}
    Path(FLAGS.save_request).write_text(json.dumps(record, indent=1) + "\n")


def draw(model: str, wanted: list) -> None:
    """All pictures of all requests, each written as soon as it is there, and a grid."""
    import numpy as np
    from tqdm import tqdm

    from lDM_jax.core import image

    out = output_directory()
    pipe = load(model)
    wanted = [pipe.resolved(request) for request in wanted]
    save_request(model, wanted)
    if FLAGS.interpolate is not None:
        return draw_between(pipe, wanted, out)
    if FLAGS.animation is not None:
        return draw_steps(pipe, wanted, out)
    pictures = []
    with tqdm(total=sum(len(r.seeds) for r in wanted), unit="img") as progress:
        for request in wanted:
            name = slug(request.prompt)
            prefix = f"{name}_" if len(wanted) > 1 else ""
            for seed, pixels in zip(request.seeds, pipe.run(request), strict=True):
                one = dataclasses.replace(request, seeds=(seed,)).record()
                path = out / f"{prefix}{seed:06d}.png"
                image.write_png(path, pixels, request={"model": model, **one})
                pictures.append(pixels)
                progress.update()
    columns = len(wanted[0].seeds) if len(wanted) > 1 else None
    image.write_png(out / "grid.png", image.grid(np.stack(pictures), columns=columns))
    progress.write(f"{len(pictures)} pictures and grid.png in {out}")


def draw_again(model: str, way) -> None:
    """A --request with the edits of its way: one PNG a seed that holds the same."""
    from lDM_jax.core import image
    from lDM_jax.sampling import edits

    out = output_directory()
    pipe = load(model)
    for seed, pixels in zip(way.request.seeds, edits.draw(pipe, way), strict=True):
        one = dataclasses.replace(way.request, seeds=(seed,))
        record = dataclasses.replace(way, request=one).record()
        path = out / f"{seed:06d}.png"
        image.write_png(path, pixels, request={"model": model, **record})
        sys.stderr.write(f"{path}\n")


def draw_between(pipe, wanted: list, out: Path) -> None:
    """--interpolate: numbered pictures, a grid, and the animation if it is asked for.

    The way goes over the seeds of one prompt, or over as many prompts as seeds.
    """
    import numpy as np
    from tqdm import tqdm

    from lDM_jax.core import image

    fields = {**vars(wanted[0])}
    prompts = [fields.pop("prompt")] + [request.prompt for request in wanted[1:]]
    prompt = prompts if len(prompts) > 1 else prompts[0]
    frames = []
    way = pipe.interpolate(FLAGS.interpolate, prompt, **fields)
    for number, pixels in enumerate(tqdm(way, unit="img")):
        image.write_png(out / f"way_{number:04d}.png", pixels)
        frames.append(pixels)
    image.write_png(out / "grid.png", image.grid(np.stack(frames)))
    if FLAGS.animation is not None:
        image.write_animation(out / FLAGS.animation, frames)
    sys.stderr.write(f"{len(frames)} pictures and grid.png in {out}\n")


def draw_steps(pipe, wanted: list, out: Path) -> None:
    """--animation: the clean estimate after every step, all seeds side by side."""
    from tqdm import tqdm

    from lDM_jax.core import image
    from lDM_jax.core.errors import UserError

    if len(wanted) != 1:
        raise UserError("--animation shows one request: give one --prompt")
    request = wanted[0]
    frames = []
    for step in tqdm(pipe.stream(**vars(request)), total=request.steps, unit="step"):
        frames.append(image.grid(pipe.to_pixels(step.z0_hat)))
    given = pipe.planner.canvas(request)
    pictures = pipe.finish(step.z, request, given)
    frames.append(image.grid(pictures))
    image.write_animation(out / FLAGS.animation, frames)
    image.write_png(out / "grid.png", frames[-1])
    sys.stderr.write(f"{len(frames)} frames in {out / FLAGS.animation}\n")


def draw_many(model: str, wanted: list) -> None:
    """--num pictures of one request into --npz."""
    from tqdm import tqdm

    from lDM_jax.core.errors import UserError
    from lDM_jax.sampling import bulk

    if not FLAGS.npz or FLAGS.num is None or FLAGS.num < 1 or len(wanted) != 1:
        raise UserError("--num and --npz belong together, with at most one --prompt")
    pipe = load(model)
    request = dataclasses.replace(wanted[0], seeds=wanted[0].seeds[:1])
    with tqdm(total=FLAGS.num, unit="img") as progress:
        for count in bulk.generate(
            pipe, request, FLAGS.num, FLAGS.npz, batch_size=FLAGS.batch
        ):
            progress.update(count)
    sys.stderr.write(f"{FLAGS.num} pictures in {FLAGS.npz}\n")


def fail(error: object) -> None:
    """One line on stderr, exit code 2."""
    os.write(2, error_line("sample.py", error).encode())
    raise SystemExit(2)


def main(argv: list[str]) -> int:
    show_help(argv, __doc__, FLAGS)
    try:
        FLAGS(argv)
        many = FLAGS.num is not None or FLAGS.npz is not None
        again = steered()
        if again is not None and not many:
            draw_again(*again)
        else:
            (draw_many if many else draw)(*requests())
    except flags.Error as error:
        fail(error)
    except (ValueError, OSError) as error:
        fail(error)
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv))
