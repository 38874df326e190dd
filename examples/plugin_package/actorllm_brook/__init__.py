"""BrookForCausalLM for ActorLLM. Imports actorllm.layers, actorllm.models.contract and, in tests, actorllm.testing alone."""
