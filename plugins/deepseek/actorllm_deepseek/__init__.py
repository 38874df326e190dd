"""DeepSeek models with latent attention for ActorLLM. Uses the public plugin API only."""
