"""Config -> objects. Nothing below this room reads a config."""
