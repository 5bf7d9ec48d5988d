"""What a model is asked for, one file a task."""
