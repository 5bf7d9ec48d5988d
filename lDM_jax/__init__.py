"""Latent diffusion models in JAX: nine floors, in reading order.

1  core                         arrays, errors, random streams, images, devices, files
2  data                         sources and transforms: files -> rows of a batch
3  models                       networks, and nothing else
4  diffusion, weights           the noise process and samplers; parameters in files
5  tasks                        what a model is conditioned on, one file a task
6  from_config                  the one reader of configs: config -> objects
7  sampling, training, interop  request -> images; the loop; other programs' weights
8  evaluation, studio           images -> figures; the page that steers a model
9  tools                        python -m lDM_jax.tools.<name>

Imports go strictly downward. `lDM_jax.pipeline` is the public door to sampling.
"""
