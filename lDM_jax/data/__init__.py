"""Examples for training: sources -> transforms -> pipeline, in this reading order.

A source is random access to examples (dicts of numpy values), a transform maps one
example to another with a random generator of its own, and the pipeline shuffles, shards
and batches. Nothing here imports jax, so that loader workers never start a device.

sources, scenes             the embedded data
metadata, folder            your own images
records, tfds_source, annotated   ArrayRecord, TFDS, COCO and OpenImages
latents_cache               latents that were encoded before
transforms, crop, masks, degrade   example transforms
bad_examples, pipeline      batches, and the examples left out of them
webdataset                  conversion of tar shards to records
"""
