"""Configs are values: one file per published or shipped model, `common` is shared."""
