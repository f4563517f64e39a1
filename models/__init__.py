"""PFGM++ image models: maths, networks, checkpoints and training. Knows nothing of the service.

kernel -> sampler (which noise, which path) | unet, exact (what denoises) -> checkpoint (how it is kept)
-> generate (images from seeds) | train, judge (how a checkpoint comes to be, and what it is worth).
"""
