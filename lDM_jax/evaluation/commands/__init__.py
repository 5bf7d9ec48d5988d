"""The commands of `python -m lDM_jax.tools.evaluate`, one file each."""
