"""What everything else stands on: arrays, errors, random streams, images, files,
what a process settles first, hosts and meshes. Nothing here knows diffusion."""
