"""Videos and captions as latents and embeddings."""
