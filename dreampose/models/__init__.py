"""Neural networks: denoiser, adapter, VAE codec, LoRA, subjects."""
