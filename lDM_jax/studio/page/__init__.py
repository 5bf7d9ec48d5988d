"""The page of the studio, in Gradio: layout, wiring, events."""
