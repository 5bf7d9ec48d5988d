"""The sides of a comparison: statistics, images, or both.

Reads folders, batches (`arr_0`) and statistics files of the field, which all are npz
with `mu` and `sigma` (pytorch-fid, clean-fid, EDM), or with `mu_s` and `sigma_s` of the
spatial features as well (guided-diffusion). `save` writes a file that all of them read:

    mu, sigma, mu_s, sigma_s   f64, over all images
    arr_0                      uint8 "m H W 3", at most 10,000 of them
    features                   f32 "m d" of these
    record                     JSON: extractor, digest of its weights, resize,
                               transform, source fingerprint, count

Two sides that were prepared differently are refused (`check_same`); files of other
programs do not tell their preparation, which a warning says. Nothing is ever unpickled.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lDM_jax.core.errors import UserError
from lDM_jax.core.files import replacing
from lDM_jax.evaluation.extractors import Extractor
from lDM_jax.evaluation.features import ArrayBank, Bank, extract
from lDM_jax.evaluation.image_sets import Batch, Folder, ImageSet, Part
from lDM_jax.evaluation.metrics.statistics import Gaussian

KEPT_IMAGES = 10_000
# What must be equal, and what must be equal where both sides record it.
PREPARATION = ("extractor", "weights_sha256", "resize")
KNOWN = ("sizes_px", "transform")


@dataclasses.dataclass
class Side:
    """One side of a comparison.

    pool, spatial: statistics over all images (count 0: not known); bank: features of
    images, None for a file of statistics alone; record: see `check_same`; warnings:
    for the reader of the figures.
    """

    name: str
    pool: Gaussian
    spatial: Gaussian | None
    bank: Bank | None
    record: dict
    warnings: list[str] = dataclasses.field(default_factory=list)


def open_side(
    path: str | Path,
    extractor: Extractor,
    work: Path,
    *,
    report: Callable[[int], None] = lambda count: None,
) -> Side:
    """Open a folder, a batch or a file of statistics; features go below `work`."""
    path = Path(path).expanduser()
    if path.is_dir():
        return side_of_images(Folder(path), extractor, work, report=report)
    if not path.is_file():
        raise UserError(f"{path}: no such folder or npz file")
    names = array_names(path)
    if "mu" in names:
        return side_of_statistics(path, names, extractor, work, report=report)
    if "arr_0" in names:
        return side_of_images(Batch(path), extractor, work, report=report)
    raise UserError(
        f"{path} holds {', '.join(sorted(names)) or 'nothing'}; expected arr_0 "
        "(images) or mu and sigma (statistics)"
    )


def array_names(path: Path) -> set[str]:
    """Names of the arrays of an npz file. UserError for another file."""
    try:
        with zipfile.ZipFile(path) as npz:
            files = npz.namelist()
        return {n.removesuffix(".npy") for n in files if n.endswith(".npy")}
    except zipfile.BadZipFile:
        raise UserError(
            f"{path} is no npz file. Pickles (.pkl, .pt) are not read: they run code; "
            "store their mu and sigma by numpy.savez"
        ) from None


def side_of_images(
    images: ImageSet,
    extractor: Extractor,
    work: Path,
    *,
    report: Callable[[int], None] = lambda count: None,
) -> Side:
    """A side of which all images are available."""
    bank = extract(images, extractor, work, report=report)
    spatial = bank.gaussian("spatial") if bank.has("spatial") else None
    return Side(images.name, bank.gaussian(), spatial, bank, bank.record)


def side_of_statistics(
    path: Path,
    names: set[str],
    extractor: Extractor,
    work: Path,
    *,
    report: Callable[[int], None],
) -> Side:
    """A side from a file: its statistics, and features of its images if it has any."""
    with np.load(path, allow_pickle=False) as npz:
        record = json.loads(str(npz["record"])) if "record" in names else {}
        count, width = record.get("count", 0), record.get("width")
        pool = gaussian(path, npz, "mu", "sigma", count, width)
        spatial = None
        if "mu_s" in names:
            spatial = gaussian(path, npz, "mu_s", "sigma_s", count, None)
        features = np.asarray(npz["features"]) if "features" in names else None
    warning = (
        f"{path} does not say how it was prepared: features of another network or "
        f"resize than {extractor.name} ({extractor.resize}) would go unnoticed"
    )
    warnings, bank = [] if record else [warning], None
    if features is not None and record:
        bank = ArrayBank(features, record)
    elif "arr_0" in names:
        bank = extract(Batch(path), extractor, work, report=report)
        record.setdefault("sizes_px", bank.record["sizes_px"])
        record = {**({} if record.get("extractor") else extractor.record()), **record}
    return Side(str(path), pool, spatial, bank, record, warnings)


def gaussian(
    path: Path, npz, mean: str, covariance: str, count: int, width: int | None
) -> Gaussian:
    """Read and check two arrays of a file: shapes, finite, symmetric."""
    mu, sigma = (np.asarray(npz[name], np.float64) for name in (mean, covariance))
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or (width and len(mu) != width):
        raise UserError(
            f"{path}: {mean} is {mu.shape} and {covariance} {sigma.shape}; expected "
            f"({width or 'd'},) and ({width or 'd'}, {width or 'd'})"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path}: {mean} or {covariance} is not finite")
    scale = np.abs(sigma).max(initial=0.0)
    if np.abs(sigma - sigma.T).max(initial=0.0) > 1e-6 * scale:
        raise UserError(f"{path}: {covariance} is not symmetric")
    return Gaussian(mu, (sigma + sigma.T) / 2, count)


def check_same(a: Side, b: Side) -> None:
    """UserError with both records if the sides were prepared differently.

    Extractor, weights and resize must be equal, and so must the images' extents and
    the transform where both sides record them.
    """
    recorded = a.record.get("extractor") and b.record.get("extractor")
    differ = [k for k in PREPARATION if recorded and a.record[k] != b.record.get(k)]
    for key in KNOWN:
        first, second = a.record.get(key), b.record.get(key)
        if first is not None and second is not None and first != second:
            differ.append(key)
    if len(a.pool.mean) != len(b.pool.mean):
        differ.append("features")
    if differ:
        records = "; ".join(
            f"{side.name} ({len(side.pool.mean)} features): "
            + (json.dumps(side.record, sort_keys=True) if side.record else "no record")
            for side in (a, b)
        )
        what = f"these were prepared differently ({', '.join(differ)})"
        raise UserError(f"{what} and do not compare: {records}")


def save(path: str | Path, side: Side, images: ImageSet) -> None:
    """Write the file that the module describes, atomically.

    It stores all images, or 10,000 drawn without replacement (seed 0), in order.
    """
    path, count = Path(path), len(images)
    indices = np.arange(count)
    if count > KEPT_IMAGES:
        rng = np.random.default_rng(0)
        indices = np.sort(rng.choice(count, KEPT_IMAGES, replace=False))
    subset = Part(images, indices)
    extents = len(side.record["sizes_px"])
    if extents > 1:
        raise UserError(
            f"{side.name} has images of {extents} extents; a reference has one"
        )
    position = np.argsort(side.bank.order)
    arrays = {
        "mu": side.pool.mean,
        "sigma": side.pool.covariance,
        "features": side.bank.rows(position[indices]),
        "record": np.array(json.dumps({**side.record, "width": len(side.pool.mean)})),
    }
    if side.spatial is not None:
        arrays |= {"mu_s": side.spatial.mean, "sigma_s": side.spatial.covariance}
    with (
        replacing(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as npz,
    ):
        for name, array in arrays.items():
            with npz.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
        with npz.open("arr_0.npy", "w", force_zip64=True) as stream:
            write_images(stream, subset, tuple(side.record["sizes_px"][0]))


def write_images(stream, images: ImageSet, size: tuple[int, int]) -> None:
    """Write an npy array of images of one size, one image at a time."""
    shape = (len(images), *size, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    for index in range(len(images)):
        (pixels,) = images.read([index])
        stream.write(np.ascontiguousarray(pixels).tobytes())
