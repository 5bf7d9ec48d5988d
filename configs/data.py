"""The published data sets: where they are, their layout, their transform (shared file).

A value is a part of config.data; `about` ends the error of data that cannot be found.
The crops, filters and mirroring are those of the original's loaders: LSUN is cut and
resized by PIL's bicubic filter and mirrored; faces, ImageNet and OpenImages come from
taming-transformers, which resizes the shorter side by linear interpolation without
antialiasing and mirrors nothing but layouts. The original's loaders of OpenImages,
landscapes and Places were not released: of them the extents before the crop are known
(384 and 768 px), of Places only that it is trained on crops.
"""


def _folder(about: str, **options) -> dict:
    return dict(source="folder", about=about, **options)


FACES = dict(filter="linear")
CELEBAHQ = _folder(
    "CelebA-HQ (github.com/tkarras/progressive_growing_of_gans): a folder with its "
    "30,000 pictures; or source 'tfds' and path 'celeb_a_hq/256'",
    **FACES,
)
CELEBA = _folder(
    "CelebA (mmlab.ie.cuhk.edu.hk/projects/CelebA.html): a folder with its pictures; "
    "or source 'tfds' and path 'celeb_a'",
    **FACES,
)
FFHQ = _folder(
    "FFHQ (github.com/NVlabs/ffhq-dataset): a folder with its 70,000 pictures", **FACES
)
BEDROOMS = _folder(
    "LSUN bedrooms (github.com/fyu/lsun): its pictures exported to a folder; or source "
    "'tfds' and path 'lsun/bedroom'",
    flip=0.5,
)
CHURCHES = _folder(
    "LSUN churches (github.com/fyu/lsun): its pictures exported to a folder; or source "
    "'tfds' and path 'lsun/church_outdoor'",
    flip=0.5,
)
IMAGENET = _folder(
    "ImageNet (image-net.org, ILSVRC2012): a folder with train/ and val/, each with a "
    "sub-folder a class; or source 'tfds' and path 'imagenet2012'",
    crop="random",
    filter="linear",
)
IMAGENET_SR = {**IMAGENET, "crop": "share", "min_px": 256}
OPENIMAGES_PICTURES = _folder(
    "OpenImages (storage.googleapis.com/openimages/web): a folder with its pictures",
    crop="random",
    resize_px=384,
    filter="linear",
)
OPENIMAGES_SR = {**OPENIMAGES_PICTURES, "crop": "share", "resize_px": 0, "min_px": 256}
OPENIMAGES_BOXES = dict(source="openimages", crop="random", filter="linear", flip=0.5)
COCO = dict(source="coco", crop="random", filter="linear", flip=0.5)
CAPTIONS = _folder(
    "pictures with captions: photo.jpg beside photo.txt, or a metadata.jsonl; tar "
    "shards become source 'array_record' by lDM_jax.tools.convert_webdataset"
)
LANDSCAPES = _folder(
    "landscapes with label maps: images/a.jpg and segmentation/a.png, grey or with a "
    "palette, whose values are labels 0 .. 181",
    crop="random",
    resize_px=384,
)
LANDSCAPES_512 = {**LANDSCAPES, "resize_px": 768, "size_px": 512}
PLACES = _folder(
    "Places (places2.csail.mit.edu): a folder with its pictures; or source 'tfds' and "
    "path 'places365_small'",
    crop="random",
    resize_px=512,
)
