"""Ray Serve deployments: renderer, sampler, extractor, finetuning."""
