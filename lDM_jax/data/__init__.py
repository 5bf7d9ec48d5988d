"""Examples for training: sources -> transforms -> pipeline, in this reading order.

A source is random access to examples (dicts of numpy values), a transform maps one
example to another with a random generator of its own, and the pipeline shuffles, shards
and batches. Nothing here imports jax, so that loader workers never start a device.

sources, scenes             the embedded data
metadata, folder            one's own pictures
records, tfds_source, annotated   ArrayRecord, TFDS, COCO and OpenImages
latents                     what was encoded before
transforms, crop, masks, degrade   one example to the next
bad_examples, pipeline      batches, and what is left out of them
"""
