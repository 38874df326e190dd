"""The Llama family for ActorLLM: one module per architecture. Uses the public plugin API only."""
