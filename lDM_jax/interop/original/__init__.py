"""The original program's YAML files and checkpoints: settings, read, write."""
