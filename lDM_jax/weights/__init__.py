"""Parameters on disk: directories of safetensors, checkpoints, files of torch."""
