"""ChatGLM2, ChatGLM3 and GLM-4 9B for ActorLLM. Uses the public plugin API and the Llama plugin."""
