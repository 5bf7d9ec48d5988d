"""evaluate compare SAMPLES REFERENCE: two sets of images or statistics.

Each is a folder, an npz batch (arr_0) or an npz of statistics (mu, sigma). The first
holds the samples: precision is of the first, recall of the second.
"""

import argparse
import sys

from lDM_jax.core.distributed import is_first
from lDM_jax.evaluation import options
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.figures import measure
from lDM_jax.evaluation.sides import Side


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("samples", help="folder or npz to judge")
    parser.add_argument("reference", help="folder or npz to compare with")
    options.add_extractors(parser, default=options.INCEPTION)
    options.add_measuring(parser)


def run(args: argparse.Namespace) -> dict:
    """FID and the like between two folders, batches or files of statistics."""
    result = {"metric": "compare", "samples": args.samples, "reference": args.reference}
    with options.work_folder(args) as work:
        for extractor in options.extractors(args):
            sides = [
                options.side(path, extractor, work, key, title=path)
                for key, path in (("a", args.samples), ("b", args.reference))
            ]
            result |= compare_sides(args, *sides, extractor)
    return result


def compare_sides(
    args: argparse.Namespace,
    samples: Side,
    reference: Side,
    extractor: Extractor,
    *,
    paired: bool = False,
) -> dict:
    """The figures of one extractor as JSON; warnings go to stderr."""
    how = dict(kinds=args.figures, replicates=args.bootstrap, paired=paired)
    report = measure(samples, reference, extractor, **how)
    for text in report.warnings if is_first() else ():
        sys.stderr.write(f"evaluate: warning: {text}\n")
    key = extractor.label or extractor.name
    return report.as_json() | {
        f"prepared_{key}": extractor.record(),
        "count": samples.record.get("count", samples.pool.count),
        "reference_count": reference.record.get("count", reference.pool.count),
    }
