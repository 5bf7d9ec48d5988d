"""The page of the studio, in Gradio: layout, inputs, wiring, events."""
