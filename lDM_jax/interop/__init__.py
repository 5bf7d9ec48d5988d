"""Weights of other programs, from and to ours: a map, in reading order.

Files and arrays by their names are `weights`'s (torch_file, name_maps).

names, names_text      other programs' parameters by name
validate               single values out of their settings
first_stage_settings   settings of first stages <-> sections of our configs
original               a `LatentDiffusion`: settings, conditions, read, write
diffusers              a pipeline's directory: settings, read, write
converted              a whole model in our terms, and its writing

The command is `lDM_jax.tools.convert`.
"""
