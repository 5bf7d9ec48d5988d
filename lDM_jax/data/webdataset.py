"""webdataset tar shards -> ArrayRecord files, one per shard.

Members of a tar that share a name up to its first dot and follow each other are one
example. A shard's records are whole when the JSON beside them exists: it is the last.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing, write_json
from lDM_jax.core.image import IMAGE_SUFFIXES
from lDM_jax.data import metadata, records

MAPS = {"seg.png": "segmentation", "mask.png": "mask"}
FIELDS = ("caption", "text", "label", "boxes", "labels", "objects")


def examples(tar: Path) -> Iterator[dict[str, bytes]]:
    """{suffix: content} of every example; UserError if the tar is not whole."""
    try:
        check_end(tar)
        with tarfile.open(tar, "r|*") as file:
            name, example = None, {}
            for member in file:
                if not member.isfile():
                    continue
                folder, _, last = member.name.rpartition("/")
                stem, _, suffix = last.partition(".")
                if (folder, stem) != name and example:
                    yield example
                    example = {}
                name = folder, stem
                example[suffix.lower()] = file.extractfile(member).read()
            if example:
                yield example
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{tar} is not a whole tar: {error}") from None


def check_end(tar: Path) -> None:
    """Raise tarfile.ReadError for an uncompressed tar without its two empty end blocks.

    tarfile itself accepts a file that ends inside a header. Compressed tars are checked
    by their decompression.
    """
    with open(tar, "rb") as file:
        start = file.read(3)
        if start in (b"BZh", b"\xfd7z") or start.startswith(b"\x1f\x8b"):
            return
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 1024))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("its end is missing")


def read_fields(example: dict[str, bytes]) -> tuple[dict, dict[str, bytes]] | None:
    """(fields, files) of an example as `records.pack` takes them; None if unusable."""
    names = (suffix[1:] for suffix in IMAGE_SUFFIXES)
    pixels = next((example[name] for name in names if name in example), None)
    if pixels is None:
        return None
    try:
        fields = metadata.parse(example["json"]) if "json" in example else {}
        if "cls" in example:
            fields["label"] = int(example["cls"])
        if "txt" in example:
            fields["caption"] = example["txt"].decode("utf-8-sig")
    except (ValueError, TypeError):
        return None
    if metadata.check(fields):
        return None
    maps = {MAPS[name]: data for name, data in example.items() if name in MAPS}
    return {k: fields[k] for k in FIELDS if k in fields}, {"image": pixels, **maps}


def convert(tar: Path, target: Path) -> dict:
    """Write one tar's records and, last, the JSON that says they are whole."""
    count, left_out, classes, categories, labels = 0, 0, set(), set(), 0
    with replacing(target) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1")
        for example in examples(tar):
            contents = read_fields(example)
            if contents is None:
                left_out += 1
                continue
            fields, files = contents
            writer.write(records.pack(fields, files))
            count += 1
            if isinstance(fields.get("label"), str):
                classes.add(fields["label"])
            else:
                labels = max(labels, fields.get("label", -1) + 1)
            boxes = metadata.labeled_boxes(fields)
            categories |= {c for c in (boxes[1] if boxes else ()) if isinstance(c, str)}
        writer.close()
    summary = {"records": count, "left_out": left_out, "tar": tar.name}
    summary |= {"classes": sorted(classes), "categories": sorted(categories)}
    summary["num_classes"] = len(classes) or labels
    write_json(target.with_suffix(".json"), summary)
    return summary
