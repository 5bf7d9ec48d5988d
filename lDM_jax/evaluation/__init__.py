"""The commands of tools/evaluate.py and what they share. In reading order:

image_sets              folders, npz batches, a config's data -> uint8 images
extractors              feature networks with their weights and input conventions
features                images -> features on the disk, resumable, shared by hosts
sides                   sides of a comparison: statistics, images; what may be compared
comparison              what a metric gets, and the report it adds to
metrics/                the metrics
figures                 the list of metrics; two sides -> a report with warnings
options                 flags that commands share
commands/               one file per command
"""
