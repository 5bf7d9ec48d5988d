"""Programs run as `python -m lDM_jax.tools.<name>`; nothing imports from here."""

from lDM_jax.core.startup import settle

settle()
