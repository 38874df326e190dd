"""Trains the demo model that ActorLLM brings along: `python -m examples.train_demo` (see `__main__.py`)."""
