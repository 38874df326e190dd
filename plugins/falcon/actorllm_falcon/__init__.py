"""Falcon for ActorLLM. Uses the public plugin API only."""
