"""Latent diffusion models in JAX: a map of the package, in reading order.

arrays, errors, rng     vocabulary, the user's error, named random streams
image                   pixels, image files
models/                 networks: layers, unet, autoencoder, text, clip, conditioners
diffusion               the noise process: alpha_t, sigma_t, targets, time grids
guidance, samplers      Denoiser -> Denoiser; noise -> latents
codec, tiling, losses   pixels <-> latents, also in tiles; what the stages minimise
windows                 large pictures in overlapping pieces
tokenizers, box_tokens  texts and layouts -> tokens
tasks, data/            conditioning by task; sources, transforms, grain pipeline
training/               state, optimiser, sharding, checkpoints, both stages, the loop
metrics/                figures of merit
downloads, perceptual   files fetched on first use; the weights of LPIPS
build, experiment       config -> objects; objects -> what the loop trains
summary, flops          what --dry_run prints
torch_pickle, torch_file, weights
                        files of weights, read without executing anything
names*, convert         other programs' parameters by name, exact cover
checked, architectures* other programs' settings
from_*, export_*, conversion
                        whole models from and to other programs
bulk                    many pictures into one file
requests, pipeline      what is asked for; sampling, for people and programs
tools/                  python -m lDM_jax.tools.<name>
"""
