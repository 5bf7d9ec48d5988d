"""Networks: arrays in, arrays out. They know no diffusion, no config and no data."""
