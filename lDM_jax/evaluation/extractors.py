"""Feature networks with their input convention and weights: images -> features.

    emoji             the shipped network of the embedded set; for comparing runs on it
    inception         InceptionV3, `legacy` input: guided-diffusion, torch-fidelity
    inception-clean   the same network, `clean` input: clean-fid
    inception-pytorch the same network, input as pytorch-fid's
    vgg               VGG16's second dense layer: the original precision and recall
    dinov2            DINOv2's class token, `clean` input at 224 px: FD-DINOv2
    clip              CLIP's image embedding of unit length, `clean` input: CMMD, and
                      the CLIP score of texts

Owns where weights come from and the path from uint8 to a network's input: resized by
`metrics.resize`, never rounded, then scaled. A batch always has the same rows on a
device, and the last one is padded and cut: features do not depend on how images are
batched, nor on the number of devices.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lDM_jax.core.arrays import Array
from lDM_jax.core.errors import UserError
from lDM_jax.data.tokenizers import ClipTokenizer
from lDM_jax.evaluation.metrics import resize
from lDM_jax.interop import names_text
from lDM_jax.models import emoji_features, inception, vgg16, vit
from lDM_jax.models.clip_text import ClipText
from lDM_jax.weights import directory as weights_directory
from lDM_jax.weights import lpips as lpips_weights
from lDM_jax.weights import name_maps, torch_file
from lDM_jax.weights.downloads import fetch

EMOJI_WEIGHTS = weights_directory.ASSETS / "emoji_features.safetensors"
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d"  # the digits that its name carries
DINOV2_URL = (
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"
)
# Mean and deviation of the colors that CLIP was trained with, in [0, 1].
CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_COLORS = (vgg16.MEAN, vgg16.DEVIATION)
TEXTS = 32  # in a batch of the text tower
ADVICE = "give another file by --weights, or compare runs with --extractor=emoji"


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network with its weights and input convention.

    name; resize: a mode of `metrics.resize`; size_px: the network's input; digest: of
    the weight file (SHA-256); rows: of a batch on one device; label: suffix of the
    names of its figures, "" for the plain names; only: the one metric of
    `figures.METRICS` that it serves, "" for all.
    """

    name: str
    resize: str
    size_px: int
    digest: str
    rows: int
    label: str
    variables: dict
    apply: Callable[[dict, Array], dict[str, Array]]  # f32 [0, 255] -> features
    embed_texts: Callable[[Sequence[str]], np.ndarray] | None = None  # -> f32 "n d"
    only: str = ""

    def record(self) -> dict:
        """What two sets of features must share to be compared."""
        return {
            "extractor": self.name,
            "weights_sha256": self.digest,
            "resize": self.resize,
        }

    @property
    def batch_images(self) -> int:
        """Rows over all local devices."""
        return self.rows * jax.local_device_count()

    @functools.cached_property
    def _on_devices(self):
        """(mesh's batch sharding, variables on every local device)."""
        mesh = Mesh(np.array(jax.local_devices()), ("data",))
        variables = jax.device_put(self.variables, NamedSharding(mesh, P()))
        return NamedSharding(mesh, P("data")), variables

    @functools.cached_property
    def _programs(self):
        """(features of equal images and their matrices, features of resized images)."""

        def resized(variables, pixels, rows, columns):
            x = pixels.astype(jnp.float32)
            with jax.default_matmul_precision("highest"):
                x = jnp.einsum("pw,bhwc->bhpc", columns, x)
                x = jnp.einsum("oh,bhpc->bopc", rows, x)
                return self.apply(variables, jnp.clip(x, 0.0, 255.0))

        def ready(variables, x):
            with jax.default_matmul_precision("highest"):
                return self.apply(variables, x)

        return jax.jit(resized), jax.jit(ready)

    def features(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """{"pool": f32 "n d", ...} of uint8 images "H W 3", equal in size or not."""
        parts = [
            self._batch(images[start : start + self.batch_images])
            for start in range(0, len(images), self.batch_images)
        ]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _batch(self, images: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        sharding, variables = self._on_devices
        resized, ready = self._programs
        count, padding = len(images), self.batch_images - len(images)
        shapes = {pixels.shape for pixels in images}
        if len(shapes) == 1:
            (height, width, _), *_ = shapes
            stacked = np.stack([*images, *[images[-1]] * padding])
            matrices = [
                jnp.asarray(resize.resize_matrix(self.resize, side, self.size_px))
                for side in (height, width)
            ]
            features = resized(variables, jax.device_put(stacked, sharding), *matrices)
        else:
            rows = [resize.resize(p, self.resize, self.size_px) for p in images]
            stacked = np.stack([*rows, *[rows[-1]] * padding])
            features = ready(variables, jax.device_put(stacked, sharding))
        return {key: np.asarray(value)[:count] for key, value in features.items()}


def normalize(x: Array, colors: Sequence[Sequence[float]]) -> Array:
    """(x / 255 - mean) / deviation of pixels [0, 255]; colors: (mean, deviation)."""
    mean, deviation = 255.0 * np.array(colors, np.float32)[:, None, None, None]
    return (x - mean) / deviation


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def translate_file(refusal: str, tensors: Mapping, names: Mapping, **options) -> dict:
    """`name_maps.from_original`, whose UserError begins with the refusal."""
    try:
        return name_maps.from_original(tensors, names, **options)
    except UserError as error:
        raise UserError(f"{refusal}: {error}") from None


def load_emoji(path: str = "") -> Extractor:
    """The shipped network."""
    path = path or EMOJI_WEIGHTS
    stored = torch_file.read(path)
    tree = unflatten_dict(
        {tuple(k.split("/")): np.asarray(v, np.float32) for k, v in stored.items()}
    )
    network = emoji_features.EmojiFeatures()
    size = emoji_features.SIZE_PX
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)["params"]
    weights_directory.check_cover(tree, shapes, what=str(path))

    def apply(variables: dict, x: Array) -> dict[str, Array]:
        return network.apply(variables, x / 127.5 - 1.0)

    digest = file_digest(path)
    variables = {"params": tree}
    return Extractor("emoji", "clean", size, digest, 32, "emoji", variables, apply)


def load_inception(path: str = "", *, mode: str = "legacy") -> Extractor:
    """InceptionV3 from the FID weights as pytorch-fid or torch-fidelity stores them."""
    if not path:
        options = dict(sha256_prefix=INCEPTION_SHA256, otherwise=ADVICE)
        path = fetch(INCEPTION_URL, **options)
    network = inception.Inception()
    # pytorch-fid maps [0, 1] to [-1, 1]; the original graph subtracts 128.
    middle, reach = (127.5, 127.5) if mode == "pytorch" else (128.0, 128.0)

    def apply(variables: dict, x: Array) -> dict[str, Array]:
        return network.apply(variables, (x - middle) / reach)

    return Extractor(
        name="inception",
        resize=mode,
        size_px=inception.SIZE_PX,
        digest=file_digest(path),
        rows=16,
        label="" if mode == "legacy" else mode,
        variables=read_inception(path),
        apply=apply,
    )


def read_inception(path: str | os.PathLike) -> dict:
    """The variables of `Inception()`, f32. UserError for another network's file."""
    stored = torch_file.read(path)
    tensors = {k: stored[k] for k in stored if not k.endswith("num_batches_tracked")}
    names = {"fc.bias": name_maps.Entry(None, "same", (inception.CLASSES,))}
    for parameter, shape in inception.inception_shapes().items():
        layout = "same"
        if parameter[-1] == "kernel":
            layout = "conv" if len(shape) == 4 else "linear"
        foreign = name_maps.to_layout(np.broadcast_to(np.False_, shape), layout).shape
        name = ".".join([*parameter[:-1], parameter[-1].replace("kernel", "weight")])
        names[name] = name_maps.Entry(parameter, layout, foreign, shape)
    return translate_file(f"{path} is not the InceptionV3 of FID", tensors, names)


def load_vgg(path: str = "") -> Extractor:
    """VGG16 from torchvision's file."""
    if not path:
        options = dict(sha256_prefix=lpips_weights.VGG16_SHA256, otherwise=ADVICE)
        path = fetch(lpips_weights.VGG16_URL, **options)
    network = vgg16.VGG16()
    size = vgg16.SIZE_PX
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)

    def translate(modules: tuple[str, ...]) -> tuple[str, str]:
        return modules[0].replace("_", "."), "linear"

    names = name_maps.make_names(network, (x,), translate)
    stored, what = torch_file.read(path), f"{path} is not torchvision's VGG16"
    variables = translate_file(what, stored, names, ignored=("classifier.6.",))

    def apply(variables: dict, x: Array) -> dict[str, Array]:
        return network.apply(variables, normalize(x, IMAGENET_COLORS))

    digest = file_digest(path)
    fields = "vgg", "legacy", size, digest, 8, "original", variables, apply
    return Extractor(*fields, only="manifold")


def load_dinov2(path: str = "") -> Extractor:
    """DINOv2 of patch 14 from its authors' file, which determines the size."""
    if not path:
        raise UserError(
            "give DINOv2's weights by --weights dinov2=FILE; the field's figures are "
            f"of {DINOV2_URL}"
        )
    stored, tensors = torch_file.read(path), {}
    renamed = {"cls_token": "class_token", "pos_embed": "positions"}
    for name in stored:
        if name in renamed:
            array, target = stored[name], f"{renamed[name]}.weight"
            tensors[target] = array.reshape(array.shape[1:]).squeeze()
        elif name != "mask_token":
            tensors[name.replace(".gamma", ".weight")] = stored[name]
    parts = {"qkv": "attn.qkv", "out": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts |= {"scale1": "ls1", "scale2": "ls2"}
    names = {"patches": "patch_embed.proj", "norm_last": "norm"}
    network = vit.ViT(*read_sizes(path, tensors, "blocks.", "patch_embed.proj.weight"))

    def translate(modules: tuple[str, ...]) -> tuple[str, str]:
        kind, _, rest = modules[0].partition("_")
        if kind != "block":
            return names.get(modules[0], modules[0]), "linear"
        number, _, part = rest.partition("_")
        return f"blocks.{number}.{parts.get(part, part)}", "linear"

    return make_vit("dinov2", path, network, translate, tensors)


def load_clip(path: str = "") -> Extractor:
    """CLIP's image tower from a file in Hugging Face's names."""
    if not path:
        raise UserError(
            "give CLIP's weights by --weights clip=FILE, a model.safetensors of the "
            "Hugging Face hub; CMMD is of openai/clip-vit-large-patch14-336"
        )
    stored = torch_file.read(path)
    rest = ("text_", "logit_scale", "vision_model.embeddings.position_ids")
    tensors = {name: stored[name] for name in stored if not name.startswith(rest)}
    embeddings = "vision_model.embeddings"
    if f"{embeddings}.class_embedding" in tensors:
        token = tensors.pop(f"{embeddings}.class_embedding")
        tensors[f"{embeddings}.class_embedding.weight"] = token
    patches = f"{embeddings}.patch_embedding.weight"
    positions = f"{embeddings}.position_embedding.weight"
    layers = "vision_model.encoder.layers."
    width, depth, heads = read_sizes(path, tensors, layers, patches)
    grid = round((len(tensors[positions]) - 1) ** 0.5)
    patch = tensors[patches].shape[-1]
    network = vit.ViT(
        width,
        depth,
        heads,
        side_px=grid * patch,
        patch_px=patch,
        projection=len(tensors.get("visual_projection.weight", ())),
        **(vit.CLIP | {"trained_grid": grid}),
    )
    names = {
        "patches": f"{embeddings}.patch_embedding",
        "positions": f"{embeddings}.position_embedding",
        "class_token": f"{embeddings}.class_embedding",
        "norm_first": "vision_model.pre_layrnorm",
        "norm_last": "vision_model.post_layernorm",
        "projection": "visual_projection",
    }
    parts = {"qkv": "self_attn.qkv", "out": "self_attn.out_proj"}
    parts |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    parts |= {"norm1": "layer_norm1", "norm2": "layer_norm2"}

    def translate(modules: tuple[str, ...]) -> tuple[str, str]:
        if modules[0] in names:
            return names[modules[0]], "linear"
        _, number, part = modules[0].split("_", 2)
        return f"{layers}{number}.{parts[part]}", "linear"

    extractor = make_vit("clip", path, network, translate, tensors)
    if "text_projection.weight" not in stored:
        return extractor
    return dataclasses.replace(extractor, embed_texts=text_tower(path, stored))


def text_tower(path: str, stored: dict) -> Callable[[Sequence[str]], np.ndarray]:
    """Texts -> embeddings of unit length, f32 "n d", by the file's text tower."""
    tokens = "text_model.embeddings.token_embedding.weight"
    layers = "text_model.encoder.layers."
    width, depth, heads = read_sizes(path, stored, layers, tokens, axis=1)
    projection, vocabulary = len(stored["text_projection.weight"]), len(stored[tokens])
    sizes = dict(projection=projection, vocab_size=vocabulary)
    network = ClipText(width, depth, heads, **sizes)
    ignored = ("vision_model.", "visual_projection", "logit_scale")
    tensors = {name: stored[name] for name in stored if not name.startswith(ignored)}
    tensors.pop("text_model.embeddings.position_ids", None)
    names = names_text.clip_names(network)
    variables = translate_file(f"{path} has no text tower of CLIP", tensors, names)
    tokenizer = ClipTokenizer()
    pooled = jax.jit(lambda v, t: network.apply(v, t, method="pooled"))

    def embed(texts: Sequence[str]) -> np.ndarray:
        rows = []
        for start in range(0, len(texts), TEXTS):
            part = list(texts[start : start + TEXTS])
            ids = tokenizer(part + [part[-1]] * (TEXTS - len(part)))
            with jax.default_matmul_precision("highest"):
                rows.append(np.asarray(pooled(variables, ids))[: len(part)])
        embeddings = np.concatenate(rows)
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    return embed


def read_sizes(
    path: str, tensors: dict, layers: str, first: str, axis: int = 0
) -> tuple[int, int, int]:
    """(width, depth, heads) of a transformer's file; heads are 64 wide.

    first: the entry that has the width along `axis`.
    """
    if first not in tensors:
        raise UserError(f"{path} is not of this kind: it has no {first}")
    numbers = {n[len(layers) :].split(".")[0] for n in tensors if n.startswith(layers)}
    width = tensors[first].shape[axis]
    return width, len(numbers), max(1, width // 64)


def make_vit(
    name: str,
    path: str,
    network: vit.ViT,
    translate: name_maps.Translate,
    tensors: dict[str, np.ndarray],
) -> Extractor:
    """The extractor of a vision transformer."""
    side = network.side_px
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    names = name_maps.make_names(network, (x,), translate)
    if name == "clip":
        names = name_maps.split_qkv(names, "{}_proj", lambda width: 1)
    variables = translate_file(f"{path} is not {name}", tensors, names)
    colors = CLIP_COLORS if name == "clip" else IMAGENET_COLORS

    def apply(variables: dict, x: Array) -> dict[str, Array]:
        feature = network.apply(variables, normalize(x, colors))
        if name == "clip":
            feature = feature / jnp.linalg.norm(feature, axis=1, keepdims=True)
        return {"pool": feature}

    fields = name, "clean", side, file_digest(path), 8, name, variables, apply
    return Extractor(*fields, only="kernel" if name == "clip" else "")


EXTRACTORS: dict[str, Callable[[str], Extractor]] = {
    "emoji": load_emoji,
    "inception": load_inception,
    "inception-clean": functools.partial(load_inception, mode="clean"),
    "inception-pytorch": functools.partial(load_inception, mode="pytorch"),
    "vgg": load_vgg,
    "dinov2": load_dinov2,
    "clip": load_clip,
}


def load_extractor(name: str, path: str = "") -> Extractor:
    """The extractor of that name, its weights from `path`, else cache or download."""
    if name not in EXTRACTORS:
        valid = ", ".join(EXTRACTORS)
        raise UserError(f"extractor {name!r} is unknown; valid: {valid}")
    file = os.path.expanduser(path)
    if path and not os.path.isfile(file):
        raise UserError(f"no weights of {name} at {path}")
    return EXTRACTORS[name](file)
