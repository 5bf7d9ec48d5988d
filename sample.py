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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from lDM_jax.core.errors import UserError
from lDM_jax.core.startup import error_line, prepare, show_help

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
            (label if isinstance(label, str) else int(label), tuple(map(float, box)))
            for label, box in json.loads(text)
        ]
    except (ValueError, TypeError):
        raise ValueError(
            "--layout is JSON such as [[3, [0.1, 0.2, 0.4, 0.4]]]: label (or its "
            "name), then left, top, width and height in fractions of the picture"
        ) from None


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


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """ "0.2,0.8" -> (0.2, 0.8). Raises ValueError for anything else."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--interval={text}: give LOW,HIGH, as in 0.2,0.8") from None
    return low, high


class Field(NamedTuple):
    """A field of `Request` that a flag sets.

    read: the flag's text -> the field's value, ValueError for other texts; kind: what
    defines the flag, by default that of its default; flag: its name, if another.
    """

    name: str
    default: object
    help: str
    read: Callable = lambda value: value
    kind: Callable | None = None
    flag: str = ""


TEXT, REAL, COUNT = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
KINDS = {str: TEXT, float: REAL, int: COUNT, type(None): TEXT}
MANY = flags.DEFINE_multi_string
FIELDS = [
    Field("prompt", None, "What to draw; repeat for several.", kind=MANY),
    Field("negative", "", "What to steer away from."),
    Field("label", None, "Class, by name or number, for class-conditional models."),
    Field(
        "layout", None, "JSON: [[label, [left, top, width, height]], ...]", parse_layout
    ),
    Field("segmentation", None, "Label map: a grey PNG whose values are labels."),
    Field("image", None, "Picture to enlarge, complete or change."),
    Field("mask", None, "Picture that is not black where there is to be painted."),
    Field("strength", 1.0, "How much of the image may change: above 0, up to 1."),
    Field("source", None, "What --image shows: draw from the noise that leads to it."),
    Field("target", None, "Picture, usually small, to pull the result to."),
    Field("target_scale", 1.0, "How strongly --target pulls."),
    Field("target_loss", "l2", "l2 or lpips, at the target's size."),
    Field(
        "regions",
        None,
        "JSON: [[prompt, [left, top, width, height] or mask file], ...]",
        parse_regions,
    ),
    Field("regional", "attention", "Where regions act: attention or latent."),
    Field(
        "window_px",
        0,
        "Side in pixels of overlapping windows; 0 for none.",
        flag="window",
    ),
    Field(
        "size_px",
        None,
        "HEIGHTxWIDTH in pixels; the model's own if unset.",
        parse_size,
        flag="size",
    ),
    Field("seeds", "0-3", "Seeds: 7, or 0-15, or 1,5,9-12.", parse_seeds),
    Field("steps", None, "Sampling steps; the model's default if unset.", kind=COUNT),
    Field("guidance", None, "Guidance scale; 1 switches guidance off.", kind=REAL),
    Field(
        "rescale", 0.0, "Share of the guided prediction brought to its old deviation."
    ),
    Field(
        "interval",
        None,
        "LOW,HIGH: guide only there; 0 is clean, 1 is noise.",
        parse_interval,
    ),
    Field("autoguidance", 1.0, "Scale away from --guide; 1 is off."),
    Field("classifier_scale", 0.0, "How strongly --classifier pulls to --label."),
    Field("eta", 0.0, "DDIM noise: 0 deterministic, 1 ancestral."),
    Field("sampler", None, "Sampler name, e.g. ddim."),
    Field("spacing", None, "Times of the steps, e.g. leading, trailing, karras."),
]

FLAGS = flags.FLAGS
for field in FIELDS:
    define = field.kind or KINDS[type(field.default)]
    define(field.flag or field.name, field.default, field.help)
TEXT("model", None, "Shipped name, work directory or weights directory.")
TEXT("guide", "", "A worse model of the same task, for --autoguidance.")
TEXT("classifier", "", "A model of stage classifier.")
TEXT("lpips", "", "VGG16 file for --target_loss=lpips; else downloaded.")
TEXT("request", None, "A PNG made by this program, or JSON of a request.")
COUNT("interpolate", None, "That many pictures from each seed to the next.")
COUNT("num", None, "That many pictures into one --npz, for evaluators.")
TEXT("npz", None, "File for --num: arr_0 uint8, resumable.")
COUNT("batch", 32, "Batch of --num, over all devices.")
TEXT("out", "samples", "Directory for the pictures.")
TEXT("animation", None, "File in --out (.gif, .webp, .png) for the way there.")
TEXT("save_request", None, "JSON file for the request as a preset.")


def stored_request(path: str) -> dict:
    """The request inside a PNG of this program, or in a JSON file."""
    from lDM_jax.core import image

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
    """(model name, trajectory) of a --request that was edited midway, or None."""
    from lDM_jax.sampling import edits

    stored = stored_request(FLAGS.request) if FLAGS.request is not None else {}
    if not stored.keys() & set(edits.FIELDS):
        return None
    model = named_model(stored)
    return model, edits.from_record(stored).embedded()


def named_model(stored: dict) -> str:
    """--model, or the model that a stored request names; taken out of the latter."""
    model = FLAGS.model or stored.get("model")
    stored.pop("model", None)
    if not model:
        raise UserError(f"--request={FLAGS.request} names no model: give --model")
    return model


def slug(prompt: str | None) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", (prompt or "").lower()).strip("-")[:40]


def read_requests():
    """(model name, requests) that the flags ask for."""
    from lDM_jax.sampling.request import Request, from_record

    if FLAGS.request is not None:
        stored = stored_request(FLAGS.request)
        return named_model(stored), [from_record(stored)]
    if FLAGS.model is None:
        raise UserError("--model is required, e.g. --model=emoji")
    values = {f.name: f.read(FLAGS[f.flag or f.name].value) for f in FIELDS}
    prompts = values.pop("prompt") or [None]
    return FLAGS.model, [Request(prompt=prompt, **values) for prompt in prompts]


def output_directory() -> Path:
    """--out, created. Raises UserError if it cannot be written to."""
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


def save_request(model: str, prepared: list) -> None:
    """--save_request: the request with its pixels, for --request."""
    if FLAGS.save_request is None:
        return
    if len(prepared) != 1:
        raise UserError("--save_request holds one request: give one --prompt")
    record = {"model": model, **prepared[0].preset.record()}
    Path(FLAGS.save_request).write_text(json.dumps(record, indent=1) + "\n")


def draw(model: str, requests: list) -> None:
    """All pictures of all requests, each written as soon as it is there, and a grid."""
    import numpy as np
    from tqdm import tqdm

    from lDM_jax.core import image

    out = output_directory()
    pipe = load(model)
    prepared = []
    for request in requests:
        old = prepared[-1] if prepared else None  # they share their files
        prepared.append(pipe.prepare(request, old=old))
    save_request(model, prepared)
    if FLAGS.interpolate is not None:
        return draw_between(pipe, [one.preset for one in prepared], out)
    if FLAGS.animation is not None:
        return draw_steps(pipe, [one.preset for one in prepared], out)
    pictures, many = [], len(prepared) > 1
    total = sum(len(one.request.seeds) for one in prepared)
    with tqdm(total=total, unit="img") as progress:
        for one in prepared:
            prefix = f"{slug(one.request.prompt)}_" if many else ""
            for seed, pixels in zip(one.request.seeds, pipe.run(one), strict=True):
                record = dataclasses.replace(one.request, seeds=(seed,)).record()
                path = out / f"{prefix}{seed:06d}.png"
                image.write_png(path, pixels, request={"model": model, **record})
                pictures.append(pixels)
                progress.update()
    columns = len(prepared[0].request.seeds) if many else None
    image.write_png(out / "grid.png", image.grid(np.stack(pictures), columns=columns))
    progress.write(f"{len(pictures)} pictures and grid.png in {out}")


def draw_again(model: str, trajectory) -> None:
    """A --request with its edits: one PNG a seed that holds the same."""
    from lDM_jax.core import image
    from lDM_jax.sampling import edits

    out = output_directory()
    pictures = edits.replay(load(model), trajectory)
    for seed, pixels in zip(trajectory.request.seeds, pictures, strict=True):
        one = dataclasses.replace(trajectory.request, seeds=(seed,))
        record = dataclasses.replace(trajectory, request=one).record()
        path = out / f"{seed:06d}.png"
        image.write_png(path, pixels, request={"model": model, **record})
        sys.stderr.write(f"{path}\n")


def draw_between(pipe, requests: list, out: Path) -> None:
    """--interpolate: numbered pictures, a grid, and the animation if it is asked for.

    From seed to seed of one prompt, or of as many prompts as seeds.
    """
    import numpy as np
    from tqdm import tqdm

    from lDM_jax.core import image

    fields = {**vars(requests[0])}
    prompts = [fields.pop("prompt")] + [request.prompt for request in requests[1:]]
    prompt = prompts if len(prompts) > 1 else prompts[0]
    frames = []
    between = pipe.interpolate(FLAGS.interpolate, prompt, **fields)
    for number, pixels in enumerate(tqdm(between, unit="img")):
        image.write_png(out / f"way_{number:04d}.png", pixels)
        frames.append(pixels)
    image.write_png(out / "grid.png", image.grid(np.stack(frames)))
    if FLAGS.animation is not None:
        image.write_animation(out / FLAGS.animation, frames)
    sys.stderr.write(f"{len(frames)} pictures and grid.png in {out}\n")


def draw_steps(pipe, requests: list, out: Path) -> None:
    """--animation: the clean estimate after every step, all seeds side by side."""
    from tqdm import tqdm

    from lDM_jax.core import image

    if len(requests) != 1:
        raise UserError("--animation shows one request: give one --prompt")
    frames, steps = [], pipe.stream(**vars(requests[0]))
    for step in tqdm(steps, total=requests[0].steps, unit="step"):
        frames.append(image.grid(pipe.to_pixels(step.z0_hat)))
    frames.append(image.grid(pipe.finish(step)))
    image.write_animation(out / FLAGS.animation, frames)
    image.write_png(out / "grid.png", frames[-1])
    sys.stderr.write(f"{len(frames)} frames in {out / FLAGS.animation}\n")


def draw_many(model: str, requests: list) -> None:
    """--num pictures of one request into --npz."""
    from tqdm import tqdm

    from lDM_jax.sampling import bulk

    if not FLAGS.npz or FLAGS.num is None or FLAGS.num < 1 or len(requests) != 1:
        raise UserError("--num and --npz belong together, with at most one --prompt")
    pipe = load(model)
    request = dataclasses.replace(requests[0], seeds=requests[0].seeds[:1])
    options = dict(batch_size=FLAGS.batch)
    with tqdm(total=FLAGS.num, unit="img") as progress:
        for count in bulk.generate(pipe, request, FLAGS.num, FLAGS.npz, **options):
            progress.update(count)
    sys.stderr.write(f"{FLAGS.num} pictures in {FLAGS.npz}\n")


def main(argv: list[str]) -> int:
    """The exit code: 2, with one line on stderr, after an error of the user."""
    show_help(argv, __doc__, FLAGS)
    try:
        FLAGS(argv)
        many = FLAGS.num is not None or FLAGS.npz is not None
        edited = steered()
        if edited is not None and not many:
            draw_again(*edited)
        else:
            (draw_many if many else draw)(*read_requests())
    except (flags.Error, ValueError, OSError) as error:
        os.write(2, error_line("sample.py", error).encode())
        return 2
    return 0


if __name__ == "__main__":
    prepare()
    sys.exit(main(sys.argv))
