"""The mathematics: the noise process, samplers, guidance, codec and losses.

In reading order: schedules, process, samplers, guidance, codec, latent_diffusion,
losses, tiling, windows. Networks come in as functions of arrays.
"""
