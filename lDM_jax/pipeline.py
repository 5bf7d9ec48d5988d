"""The public door to sampling.

from lDM_jax.pipeline import Pipeline
"""

from lDM_jax.sampling.pipeline import BATCH, Pipeline, Step

__all__ = ["BATCH", "Pipeline", "Step"]
