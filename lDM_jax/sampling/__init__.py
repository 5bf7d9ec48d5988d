"""From a request to pictures.

In reading order: request, pixels, trained_model, prepare, programs, pipeline; then
edits (a steered trajectory as a record), preview, bulk.
"""
