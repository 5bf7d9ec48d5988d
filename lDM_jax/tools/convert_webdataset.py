"""webdataset tar shards -> ArrayRecord: python -m lDM_jax.tools.convert_webdataset.

    python -m lDM_jax.tools.convert_webdataset shards/*.tar --out DIR
    python -m lDM_jax.tools.convert_webdataset val/*.tar --out DIR --split validation

Members of a tar that share a name up to its first dot are one example: an image (.jpg
.jpeg .png .webp .bmp .gif), .txt (caption), .cls (class, a number), .json (fields as
in `data.metadata`), .seg.png (label map), .mask.png. One tar becomes one file of DIR,
which `config.data.source = "array_record"` reads. The same command continues after a
kill: files that are whole are kept. Examples without an image, or with fields that
cannot be read, are left out and counted; a tar that is cut short stops the conversion.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from lDM_jax.core.errors import UserError
from lDM_jax.data import records, webdataset
from lDM_jax.data.sources import SPLITS
from lDM_jax.tools import make_main


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("tars", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--split", choices=SPLITS, default="train")


def run(args: argparse.Namespace) -> dict:
    """Convert the tars that are not converted yet; totals over all tars."""
    for tar in args.tars:
        if not tar.is_file():
            raise UserError(f"no file {tar}")
    args.out.mkdir(parents=True, exist_ok=True)
    total = {"records": 0, "left_out": 0, "tars": len(args.tars), "kept": 0}
    for number, tar in enumerate(tqdm(sorted(args.tars), unit="tar", disable=None)):
        target = args.out / f"{args.split}-{number:05d}{records.SUFFIX}"
        note = target.with_suffix(".json")
        if note.exists():
            summary = json.loads(note.read_text())
            if summary["tar"] != tar.name:
                raise UserError(
                    f"{note} was made of {summary['tar']}, not of {tar.name}: give the "
                    "same tars as before, or another --out"
                )
            total["kept"] += 1
        else:
            summary = webdataset.convert(tar, target)
        total["records"] += summary["records"]
        total["left_out"] += summary["left_out"]
    return total


main = make_main("convert_webdataset", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
