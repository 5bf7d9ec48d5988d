"""What a model is asked for, one file a task; `registry` lists them."""
