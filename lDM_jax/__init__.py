"""Latent diffusion models in JAX: a map of the package, in reading order.

startup                 what a process settles before all else
arrays, errors, rng     vocabulary, the user's error, named random streams
image                   pixels, image files
models/                 networks: layers, unet, autoencoder, text, clip, conditioners
schedules, diffusion    the noise process: alpha_t, sigma_t, targets, time grids
guidance, samplers      Denoiser -> Denoiser; noise -> latents
codec, tiling, losses   pixels <-> latents, also in tiles; what the stages minimise
windows                 large pictures in overlapping pieces
tokenizers, box_tokens  texts and layouts -> tokens
tasks, data/            conditioning by task; sources, transforms, grain pipeline
training/               state, optimiser, sharding, checkpoints, both stages, the loop
metrics/                figures of merit
downloads, perceptual   files fetched on first use; the weights of LPIPS
build                   config -> objects
datasets, latents       config -> data; data encoded once
config_file             a config from its file, for tools
experiment              objects -> what the loop trains
summary, flops          what --dry_run prints
weights                 a weights directory: safetensors beside its config
interop/                weights of other programs, from and to ours
bulk                    many pictures into one file
requests, pipeline      what is asked for; sampling, for people and programs
edits                   a steered trajectory as a record, drawn again
evaluation/             pictures -> figures; the commands of tools/evaluate
studio/                 behind the page of tools/studio: sessions, runs, limits
tools/                  python -m lDM_jax.tools.<name>
"""
