"""TensorFlow Datasets: `config.data.source = "tfds"`, `config.data.path = NAME`.

NAME is as TFDS writes it: "celeb_a_hq/256", "lsun/church_outdoor", "imagenet2012",
"coco_captions". The data set must have been prepared in the array_record format, on any
machine: `tfds build NAME --file_format=array_record --data_dir=DIR`. Preparing often
takes TensorFlow; reading, here, does not import it. `config.data.data_dir` is DIR, by
default TFDS's own.

Features are read by their kinds: `image`, `label`, `objects` with `bbox` and `label`,
`captions` with `text` (or a text called caption), an image called segmentation_map or
segmentation_label.
"""

import hashlib
import os
from functools import partial

from lDM_jax.core.errors import BadExample, UserError
from lDM_jax.data import metadata
from lDM_jax.data.sources import SPLITS
from lDM_jax.data.transforms import check_option

# What a split is made of where the data set does not have it.
FALLBACK = {"validation": ("test", "val"), "test": ("validation", "val")}
SHARES = {"train": "train[:90%]", "validation": "train[90%:95%]", "test": "train[95%:]"}
LABEL_MAPS = ("segmentation_map", "segmentation_label", "segmentation")


class TfdsSource:
    """A split of a data set that TFDS has prepared; examples as `metadata.build`.

    name, data_dir: see the module. Without a split of that name "validation" and "test"
    stand for each other; without either, both are 5 % of "train". UserError if it is
    not prepared, or not as array_record.
    """

    def __init__(
        self, name: str, *, split: str = "train", data_dir: str = "", min_px: int = 1
    ):
        check_option("split", split, SPLITS)
        if not name:
            raise UserError("config.data.path is empty: give a TFDS name")
        options = dict(split=split, data_dir=data_dir, min_px=min_px)
        self._remake = partial(TfdsSource, name, **options)
        self.name, self.split, self.min_px = name, split, min_px
        builder = _builder(name, data_dir)
        self._part = _choose_split(split, set(builder.info.splits))
        features = builder.info.features
        self._keys = {
            "label": _find_feature(features, ("label",)),
            "layout": _find_feature(features, ("objects",)),
            "caption": _find_feature(features, ("captions", "caption", "text")),
            "segmentation": _find_feature(features, LABEL_MAPS),
        }
        if "image" not in features:
            raise UserError(f"TFDS {name!r} has no image; it has {', '.join(features)}")
        label = features["label"] if self._keys["label"] else None
        self.classes = list(getattr(label, "names", None) or ())
        self.num_classes = getattr(label, "num_classes", None) or 0
        objects = features["objects"] if self._keys["layout"] else None
        kind = objects.feature["label"] if hasattr(objects, "feature") else None
        self.categories = list(getattr(kind, "names", None) or ())
        import tensorflow_datasets as tfds

        image_keys = ["image", self._keys["segmentation"]]
        raw = {key: tfds.decode.SkipDecoding() for key in image_keys if key}
        self._rows = builder.as_data_source(split=self._part, decoders=raw)
        self._identity = (
            f"tfds {builder.info.full_name} {self._part} {len(self)} {min_px}"
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict:
        row, keys, fields = self._rows[i], self._keys, {}
        if keys["label"]:
            fields["label"] = int(row["label"])
        if keys["caption"]:
            fields["caption"] = _texts(row[keys["caption"]])
        if keys["layout"]:
            fields |= _boxes(row["objects"])
        if keys["segmentation"]:
            fields["segmentation"] = keys["segmentation"]
        return metadata.build(
            _bytes(row["image"]),
            fields,
            names=metadata.Names(),
            read=lambda name: _bytes(row[name]),
            where=f"TFDS {self.name!r}, example {i} of {self._part},",
            min_px=self.min_px,
            keys=self.conditions,
        )

    @property
    def conditions(self) -> list[str]:
        """The keys of an example besides "image"."""
        return [key for key, feature in self._keys.items() if feature]

    @property
    def fingerprint(self) -> str:
        """Hash of the data set's name, version, split and length, in hexadecimal."""
        return hashlib.sha256(self._identity.encode()).hexdigest()

    def __reduce__(self):
        return self._remake, ()


def _builder(name: str, data_dir: str):
    """TFDS's builder of prepared data; UserError that says how to prepare it."""
    import tensorflow_datasets as tfds

    options = {"data_dir": os.path.expanduser(data_dir)} if data_dir else {}
    how = f"prepare it once: tfds build {name} --file_format=array_record, and set "
    how += "config.data.data_dir to its --data_dir"
    try:
        builder = tfds.builder(name, try_gcs=False, **options)
    except (tfds.core.DatasetNotFoundError, ImportError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"TFDS {name!r} is not there: {first}; {how}") from None
    if not builder.info.splits:
        raise UserError(f"TFDS {name!r} is not in {builder.data_dir}: {how}")
    kind = builder.info.file_format
    if kind is None or kind.value != "array_record":
        raise UserError(f"TFDS {name!r} is prepared as {kind and kind.value}: {how}")
    return builder


def _choose_split(split: str, available: set[str]) -> str:
    """The split, or its substitute, in TFDS's notation."""
    if split == "train" and not available & {"validation", "val", "test"}:
        return SHARES[split]
    for name in (split, *FALLBACK.get(split, ())):
        if name in available:
            return name
    return SHARES[split]


def _find_feature(features, names: tuple[str, ...]) -> str:
    """The first of the names that is a feature, or ""."""
    return next((name for name in names if name in features), "")


def _texts(value) -> list[str]:
    """Texts of a feature: one, a list, or the "text" of a list of dicts."""
    value = value.get("text", ()) if isinstance(value, dict) else value
    value = [value] if isinstance(value, (bytes, str)) else value
    parts = [item["text"] if isinstance(item, dict) else item for item in value]
    return [p.decode("utf-8", "replace") if isinstance(p, bytes) else p for p in parts]


def _boxes(objects) -> dict:
    """TFDS's (ymin, xmin, ymax, xmax) -> the fields "boxes" and "labels"."""
    if isinstance(objects, dict):
        rows = zip(objects["bbox"], objects["label"], strict=True)
    else:
        rows = [(item["bbox"], item["label"]) for item in objects]
    boxes, labels = [], []
    for box, label in rows:
        top, left, bottom, right = map(float, box)
        boxes.append((left, top, right - left, bottom - top))
        labels.append(int(label))
    return {"boxes": boxes, "labels": labels}


def _bytes(value) -> bytes:
    if not isinstance(value, bytes):
        raise BadExample(f"an image is {type(value).__name__}, not a file's bytes")
    return value
