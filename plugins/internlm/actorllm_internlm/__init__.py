"""InternLM2 for ActorLLM. Uses the public plugin API and the Llama plugin."""
