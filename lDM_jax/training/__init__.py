"""Training, in reading order: state, optim, sharding, checkpoint, two stages, loop.

The loop drives a `Stage` (state.py) and never knows what it trains; autoencoder.py and
diffusion.py are the two stages.
"""
