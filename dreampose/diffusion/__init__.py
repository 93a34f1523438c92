"""Diffusion: schedulers, guidance, sampling, losses, generation."""
