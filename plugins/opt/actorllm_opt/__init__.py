"""OPT for ActorLLM. Uses the public plugin API only."""
