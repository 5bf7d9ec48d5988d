"""The commands of tools/evaluate.py and what they share. In reading order:

image_sets              folders, npz batches, a config's data -> uint8 pictures
extractors              feature networks with their weights and input conventions
features                pictures -> features on the disk, resumable, shared by hosts
references              what is compared: statistics, pictures; what may be compared
figures                 two sides -> named figures with intervals, and warnings
options                 flags that commands share
reference, compare, generate, sweep, recon, prompts, task
                        the commands
"""
