"""`python -m examples.train_demo`: generates text, trains the demo model from nothing, and writes it.

About 70 minutes on two processors of a CPU, minutes on a GPU (`--device cuda`). Interrupted, it goes on from its last checkpoint
when it is started again.
"""

import argparse
from pathlib import Path

import torch

from examples.train_demo.train import Recipe, Training


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_demo", description="train the demo model")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder to write to (default: build/demo)")
    parser.add_argument("--steps", type=int, default=Recipe.num_steps, help=f"training steps (default {Recipe.num_steps})")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="threads of a CPU (the result does not depend on them)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # a part of a batch has a thread of its own: they meet once a step and not at every operator
    training = Training(
        arguments.out, Recipe(num_steps=arguments.steps, seed=arguments.seed), device=arguments.device, threads=arguments.threads
    )
    training.run()
    print(f"the model is in {arguments.out}; chat with it: actorllm serve {arguments.out}")


if __name__ == "__main__":
    main()
