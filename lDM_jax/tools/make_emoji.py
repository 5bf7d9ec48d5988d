"""Make assets/emoji.array_record from a color emoji font and Unicode's list of names.

    python -m lDM_jax.tools.make_emoji --font NotoColorEmoji.ttf \\
        --names emoji-test.txt --out lDM_jax/assets/emoji.array_record

The shipped file was made from Debian 12's packages fonts-noto-color-emoji (Noto Color
Emoji 2.042, SIL OFL 1.1) and unicode-data (emoji-test.txt 15.0, Unicode license). The
same inputs give the same bytes.

A sequence of code points becomes one glyph through the font's own tables: `cmap` gives
a glyph a code point, a ligature of `GSUB` replaces the whole row of glyphs by one. The
image is that glyph's PNG in `CBDT`, byte for byte.

Owns the writing side of the record format; `lDM_jax/data/sources.py` reads it:

    u32 little-endian n | n bytes of UTF-8 JSON | PNG bytes
    JSON: {caption, codepoints, group, split, subgroup}, all strings
"""

import argparse
import hashlib
import json
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter
from fontTools.ttLib import TTFont, TTLibError

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing
from lDM_jax.tools import make_main

VARIATION_SELECTOR = 0xFE0F
LIGATURE, EXTENSION = 4, 7
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Name(NamedTuple):
    """One fully-qualified emoji of emoji-test.txt."""

    codepoints: str
    caption: str
    group: str
    subgroup: str


def read_names(text: str) -> Iterator[Name]:
    """The fully-qualified emoji of emoji-test.txt, in the order of the file.

    A line reads `1F468 200D 1F33E ; fully-qualified # <glyph> E4.0 man farmer`.
    """
    group = subgroup = ""
    for line in text.splitlines():
        if line.startswith("# group:"):
            group = line.partition(":")[2].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.partition(":")[2].strip()
        elif "; fully-qualified" in line:
            fields, _, comment = line.partition("#")
            codepoints = fields.partition(";")[0].strip()
            caption = comment.split(maxsplit=2)[2].strip()
            yield Name(codepoints, caption, group, subgroup)


def split_of(codepoints: str) -> str:
    """train (90 %), validation (5 %) or test (5 %): sha256 of the text, modulo 100."""
    bucket = int(hashlib.sha256(codepoints.encode()).hexdigest(), 16) % 100
    if bucket < 90:
        return "train"
    return "validation" if bucket < 95 else "test"


def read_ligatures(font: TTFont) -> dict[tuple[str, ...], str]:
    """Rows of glyph names -> the glyph that replaces them, from every GSUB ligature.

    Where two lookups know the same row the earlier one wins, as in a text shaper.
    """
    ligatures = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            kind = lookup.LookupType
            if kind == EXTENSION:
                kind, table = table.ExtSubTable.LookupType, table.ExtSubTable
            if kind != LIGATURE:
                continue
            for first, rules in table.ligatures.items():
                for rule in rules:
                    ligatures.setdefault((first, *rule.Component), rule.LigGlyph)
    return ligatures


class Font:
    """The PNG of each code point sequence that the font draws as one glyph."""

    def __init__(self, path: str | Path):
        font = TTFont(path)
        missing = [tag for tag in ("cmap", "GSUB", "CBDT") if tag not in font]
        if missing:
            raise ValueError(f"{path} has no table {missing[0]}: not a CBDT emoji font")
        self.characters = font.getBestCmap()
        self.ligatures = read_ligatures(font)
        self.glyphs = font["CBDT"].strikeData[0]

    def glyph(self, codepoints: list[int]) -> str | None:
        """The single glyph of a sequence, or None where the font has no such glyph."""
        row = tuple(self.characters.get(point) for point in codepoints)
        if None in row:
            return None
        return row[0] if len(row) == 1 else self.ligatures.get(row)

    def png(self, codepoints: list[int]) -> bytes | None:
        """The image of a sequence, tried as it stands and then without FE0F."""
        bare = [point for point in codepoints if point != VARIATION_SELECTOR]
        for candidate in (codepoints, bare):
            glyph = self.glyphs.get(self.glyph(candidate))
            if glyph is not None and glyph.imageData.startswith(PNG_SIGNATURE):
                return glyph.imageData
        return None


def encode_record(name: Name, png: bytes) -> bytes:
    """One record: header length, JSON header, PNG."""
    fields = {**name._asdict(), "split": split_of(name.codepoints)}
    header = json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()
    return struct.pack("<I", len(header)) + header + png


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--font", required=True, help="a font with CBDT images")
    parser.add_argument("--names", required=True, help="Unicode's emoji-test.txt")
    parser.add_argument("--out", required=True, help="the ArrayRecord file to write")


def run(args: argparse.Namespace) -> str:
    """Write the data set; returns its counts as JSON."""
    try:
        report = make(args.font, args.names, out=args.out)
    except (RuntimeError, TTLibError, ValueError) as error:
        raise UserError(str(error)) from None
    return json.dumps(report, indent=1, ensure_ascii=False)


def make(font: str | Path, names: str | Path, *, out: str | Path) -> dict:
    """Write the data set; returns counts: written, without a glyph, groups, splits.

    Raises ValueError when `font` or `names` is another kind of file, and OSError,
    RuntimeError or TTLibError from the libraries; then no file is left.
    """
    images = Font(font)
    entries = list(read_names(Path(names).read_text(encoding="utf-8")))
    if not entries:
        raise ValueError(f"{names} names no fully-qualified emoji: not emoji-test.txt")
    missing, records = [], []
    with replacing(Path(out)) as partial:
        writer = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        for name in entries:
            png = images.png([int(point, 16) for point in name.codepoints.split()])
            if png is None:
                missing.append(name.caption)
                continue
            writer.write(encode_record(name, png))
            records.append((name, png))
        writer.close()
    return {
        "written": len(records),
        "without a glyph": missing,
        "distinct images": len({png for _, png in records}),
        "groups": len({name.group for name, _ in records}),
        "subgroups": len({name.subgroup for name, _ in records}),
        "splits": dict(Counter(split_of(name.codepoints) for name, _ in records)),
        "bytes": Path(out).stat().st_size,
    }


main = make_main("make_emoji", __doc__, arguments, run)

if __name__ == "__main__":
    sys.exit(main())
