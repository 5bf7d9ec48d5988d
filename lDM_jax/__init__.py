"""Latent diffusion models in JAX: a map of the package, in reading order.

arrays, errors, rng     vocabulary, the user's error, named random streams
image                   pixels, image files
models/                 networks: layers, unet, autoencoder, text, conditioners
diffusion               the noise process: alpha_t, sigma_t, targets, time grids
guidance, samplers      Denoiser -> Denoiser; noise -> latents
codec, tiling, losses   pixels <-> latents, also in tiles; what the stages minimise
tasks, data/            conditioning by task; sources, transforms, grain pipeline
training/               state, optimiser, sharding, checkpoints, both stages, the loop
metrics/                figures of merit
downloads, perceptual   files fetched on first use; the weights of LPIPS
build                   config -> objects
torch_pickle, torch_file, architectures, names, convert
                        weights from and to other programs
pipeline                sampling, for people and programs
tools/                  python -m lDM_jax.tools.<name>
"""
