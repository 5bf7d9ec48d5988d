"""Weights of other programs, from and to ours: a map, in reading order.

torch_pickle, torch_file   files of weights, read without executing anything
convert                    axis orders, name maps, exact cover; lazy arrays
names, names_text          other programs' parameters by name
checked                    single values out of their settings
architectures              settings of first stages <-> sections of our configs
architectures_conditions, architectures_original
                           of a `LatentDiffusion`'s YAML
architectures_diffusers    of a diffusers pipeline
conversion                 a whole model in our terms, and its writing
from_original, from_diffusers
                           whole models, read
export_original, export_diffusers
                           whole models, written

The command is `lDM_jax.tools.convert`.
"""
