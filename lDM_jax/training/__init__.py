"""Training, in reading order: state, optim, autoencoder, diffusion, classifier, loop.

The loop drives a `Stage` (state.py) and never knows which of the three it trains.
"""
