"""webdataset tar shards -> ArrayRecord: python -m lDM_jax.tools.convert_webdataset.

    python -m lDM_jax.tools.convert_webdataset shards/*.tar --out DIR
    python -m lDM_jax.tools.convert_webdataset val/*.tar --out DIR --split validation

Members of a tar that share a name up to its first dot are one example: a picture (.jpg
.jpeg .png .webp), .txt (caption), .cls (class, a number), .json (fields as in
`data.metadata`), .seg.png (label map), .mask.png. One tar becomes one file of DIR,
which `config.data.source = "array_record"` reads. The same command goes on after a
kill: files that are whole are kept. Examples without a picture, or with fields that
cannot be read, are left out and counted; a tar that is cut short stops the conversion.
"""

import argparse
import json
import logging
import os
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from lDM_jax.core.errors import UserError
from lDM_jax.data import metadata, records
from lDM_jax.data.sources import SPLITS

log = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
MAPS = {"seg.png": "segmentation", "mask.png": "mask"}


def examples(tar: Path) -> Iterator[dict[str, bytes]]:
    """{suffix: content} of every example, in the order of the tar.

    Members of one example follow each other, as webdataset writes them. UserError for
    what is no tar, or is cut short.
    """
    try:
        check_end(tar)
        with tarfile.open(tar, "r|*") as file:
            name, found = None, {}
            for member in file:
                if not member.isfile():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                if (folder, stem) != name and found:
                    yield found
                    found = {}
                name = folder, stem
                found[suffix.lower()] = file.extractfile(member).read()
            if found:
                yield found
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{tar} is no whole tar: {error}") from None


def check_end(tar: Path) -> None:
    """tarfile.ReadError for a plain tar without the two empty blocks of its end.

    tarfile itself takes a file that ends inside a header for a whole one. Compressed
    tars are checked by their decompression.
    """
    with open(tar, "rb") as file:
        compressed = file.read(3) in (b"BZh", b"\xfd7z") or _starts(file, b"\x1f\x8b")
        if not compressed:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 1024))
            if file.read().strip(b"\0"):
                raise tarfile.ReadError("its end is missing")


def _starts(file, magic: bytes) -> bool:
    file.seek(0)
    return file.read(len(magic)) == magic


def fields_of(example: dict[str, bytes]) -> tuple[dict, dict[str, bytes]] | None:
    """(fields, files) of an example as `records.pack` takes them; None if unusable."""
    picture = next((example[name] for name in PICTURES if name in example), None)
    if picture is None:
        return None
    try:
        fields = metadata.parse(example["json"]) if "json" in example else {}
        if "cls" in example:
            fields["label"] = int(example["cls"])
        if "txt" in example:
            fields["caption"] = example["txt"].decode("utf-8-sig")
    except (ValueError, TypeError):
        return None
    known = ("caption", "text", "label", "boxes", "labels", "objects")
    if metadata.check(fields):
        return None
    files = {"image": picture}
    files |= {MAPS[name]: data for name, data in example.items() if name in MAPS}
    return {key: fields[key] for key in known if key in fields}, files


def convert(tar: Path, target: Path) -> dict:
    """Write one tar's records and, last, the JSON that says they are whole."""
    temporary = target.with_name(f".{target.name}.partial")
    writer = ArrayRecordWriter(str(temporary), "group_size:1")
    count, left_out, classes, categories, labels = 0, 0, set(), set(), 0
    for example in examples(tar):
        found = fields_of(example)
        if found is None:
            left_out += 1
            continue
        fields, files = found
        writer.write(records.pack(fields, files))
        count += 1
        if isinstance(fields.get("label"), str):
            classes.add(fields["label"])
        else:
            labels = max(labels, fields.get("label", -1) + 1)
        boxes = metadata.labelled_boxes(fields)
        categories |= {c for c in (boxes[1] if boxes else ()) if isinstance(c, str)}
    writer.close()
    os.replace(temporary, target)
    said = {"records": count, "left_out": left_out, "tar": tar.name}
    said |= {"classes": sorted(classes), "categories": sorted(categories)}
    said["num_classes"] = len(classes) or labels
    note = target.with_suffix(".json")
    partial = note.with_name(f".{note.name}.partial")
    partial.write_text(json.dumps(said) + "\n")
    os.replace(partial, note)
    return said


def run(tars: Sequence[Path], out: Path, split: str) -> dict:
    """Convert what is not converted; totals over all tars."""
    missing = [tar for tar in tars if not tar.is_file()]
    if missing:
        raise UserError(f"no file {missing[0]}")
    out.mkdir(parents=True, exist_ok=True)
    total = {"records": 0, "left_out": 0, "tars": len(tars), "kept": 0}
    for number, tar in enumerate(tqdm(sorted(tars), unit="tar", disable=None)):
        target = out / f"{split}-{number:05d}{records.SUFFIX}"
        note = target.with_suffix(".json")
        if note.exists():
            said = json.loads(note.read_text())
            if said["tar"] != tar.name:
                raise UserError(
                    f"{note} was made of {said['tar']}, not of {tar.name}: give the "
                    "same tars as before, or another --out"
                )
            total["kept"] += 1
        else:
            said = convert(tar, target)
        total["records"] += said["records"]
        total["left_out"] += said["left_out"]
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lDM_jax.tools.convert_webdataset",
        description=__doc__.splitlines()[0],
    )
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")
    args = parser.parse_args(argv)
    try:
        total = run(args.tars, args.out, args.split)
    except (UserError, OSError) as error:
        text = " ".join(str(error).split())
        sys.stderr.write(f"convert_webdataset: error: {text}\n")
        return 2
    sys.stdout.write(json.dumps(total) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
