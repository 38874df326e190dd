"""The Gemma family for ActorLLM: one module per generation. Uses the public plugin API only."""
