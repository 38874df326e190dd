"""The GPT-2 family for ActorLLM: GPT-2 and StarCoder. Uses the public plugin API only."""
