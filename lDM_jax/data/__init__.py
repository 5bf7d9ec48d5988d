"""Examples for training: sources -> transforms -> pipeline, in this reading order.

A source is random access to examples (dicts of numpy values), a transform maps one
example to another with a random generator of its own, and the pipeline shuffles, shards
and batches. Nothing here imports jax, so that loader workers never start a device.
"""
