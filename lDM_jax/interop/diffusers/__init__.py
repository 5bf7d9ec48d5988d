"""Pipelines of diffusers: settings, read, write."""
