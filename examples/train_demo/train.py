"""The training loop: a fixed number of steps, checkpoints to resume from, and the finished folder.

Progress goes to a bar on the terminal; the losses are kept for the plot. A checkpoint is a safetensors file and holds the
weights, both optimizers' moments, and the losses so far.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from examples.train_demo import bundle
from examples.train_demo.batches import batch
from examples.train_demo.llama import Llama, Size
from examples.train_demo.optimizer import Optimizer
from examples.train_demo.vocabulary import train_tokenizer

WARM_UP = 40
FIRST_CYCLE = 0.875
LAST_SHARE = 0.65
"""Of the second cycle's end in the finished weights; the rest is the first one's (averaging, arXiv 1803.05407). Chosen by
tests/demo/development.json."""
CHECKPOINT_SECONDS = 180.0
LOSSES_A_POINT = 20
"""Steps that one point of the plot averages over."""


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; `num_tokens` a step."""

    num_steps: int = 8000
    num_tokens: int = 2048
    matrix_rate: float = 0.012
    other_rate: float = 0.0015
    seed: int = 1


class Training:
    """One run into `folder`, which also holds its checkpoint."""

    def __init__(self, folder: Path, recipe: Recipe, *, device: str, threads: int) -> None:
        self._folder, self._recipe, self._device = folder, recipe, torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(path)) if path.exists() else train_tokenizer(recipe.seed)
        self.tokenizer.save(str(path))
        torch.manual_seed(recipe.seed)
        self.model = Llama(Size(self.tokenizer.get_vocab_size())).to(self._device)
        self._optimizer = Optimizer(self.model, matrix_rate=recipe.matrix_rate, other_rate=recipe.other_rate)
        self._losses: list[float] = []
        self._first_end: dict[str, Tensor] = {}  # the weights after the first cycle
        self._threads = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        if self._checkpoint.exists():
            self._resume()

    def run(self, *, until: int | None = None) -> None:
        """Train to the end, or up to a step `until`, and write the folder."""
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        print(
            f"{num_parameters:,} parameters, {self.tokenizer.get_vocab_size()} tokens, from step {len(self._losses)}", flush=True
        )
        saved = time.monotonic()
        with tqdm(total=self._recipe.num_steps, initial=len(self._losses), unit="step", mininterval=5.0) as bar:
            while len(self._losses) < (until or self._recipe.num_steps):
                self._step()
                bar.update()
                bar.set_postfix(loss=f"{sum(self._losses[-20:]) / len(self._losses[-20:]):.3f}", refresh=False)
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
        self._save()

    def _step(self) -> None:
        recipe, number = self._recipe, len(self._losses)
        parts = batch(
            self.tokenizer, number, seed=recipe.seed, num_tokens=recipe.num_tokens, context_len=self.model.size.context_len
        )
        num_targets = sum(int((targets_BT >= 0).sum()) for _, targets_BT in parts)
        losses, gradients = zip(*self._threads.map(self._gradients, *zip(*parts, strict=True)), strict=True)
        names = dict(self.model.named_parameters())
        mean = {name: torch.stack(parts).sum(0) / num_targets for name, *parts in zip(names, *gradients, strict=True)}
        tasks = self._optimizer.tasks(number + 1, mean, share=learning_share(number, recipe.num_steps))
        list(self._threads.map(lambda task: task(), tasks))
        self._losses.append(sum(losses) / num_targets)
        if len(self._losses) == round(recipe.num_steps * FIRST_CYCLE):
            self._first_end = {name: weight.clone() for name, weight in self.model.state_dict().items()}

    def _gradients(self, ids_BT: Tensor, targets_BT: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """The summed loss of some rows and its gradients, in the order of the parameters."""
        loss = self.model.loss(ids_BT.to(self._device), targets_BT.to(self._device))
        return loss.item(), torch.autograd.grad(loss, list(self.model.parameters()))

    @property
    def weights(self) -> dict[str, Tensor]:
        """What a model is made of that is written now."""
        weights = self.model.state_dict()
        return {name: self._first_end[name].lerp(weights[name], LAST_SHARE) for name in self._first_end} or weights

    @property
    def _checkpoint(self) -> Path:
        return self._folder / "checkpoint.safetensors"

    def _save(self) -> None:
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self._optimizer.state.items()}
        tensors |= {f"first/{name}": value for name, value in self._first_end.items()}
        unfinished = self._checkpoint.with_suffix(".part")
        save_file(tensors, unfinished, metadata={"losses": json.dumps(self._losses)})
        unfinished.replace(self._checkpoint)
        record = {
            **asdict(self._recipe),
            "steps_done": len(self._losses),
            "device": self._device.type,
            "torch": torch.__version__,
        }
        losses = averaged(self._losses)
        bundle.write(
            self._folder, self.weights, size=self.model.size, tokenizer=self.tokenizer, recipe=record, losses=losses
        )

    def _resume(self) -> None:
        with safe_open(self._checkpoint, framework="pt", device=str(self._device)) as file:
            self._losses = json.loads(file.metadata()["losses"])
            self.model.load_state_dict({name: file.get_tensor(f"model/{name}") for name in self.model.state_dict()})
            names = [name for name in file.keys() if name.startswith("first/")]  # noqa: SIM118  (a file, which cannot be iterated)
            self._first_end = {name.removeprefix("first/"): file.get_tensor(name) for name in names}
            for name in self._optimizer.state:
                self._optimizer.state[name] = file.get_tensor(f"optimizer/{name}")


def learning_share(step: int, num_steps: int) -> float:
    """Up within `WARM_UP` steps, then down in a line to nothing: small batches are noisy, and only small steps average that out.
    After `FIRST_CYCLE` of all steps once more, from half the height: what was found is loosened and settles better (warm
    restarts, arXiv 1608.03983)."""
    length = round(num_steps * FIRST_CYCLE)
    height = 1.0
    if step >= length:
        step, length, height = step - length, num_steps - length, 0.5
    return height * min((step + 1) / WARM_UP, 1.0) * (length - step) / length


def averaged(losses: list[float]) -> list[tuple[int, float]]:
    """The points of the plot."""
    groups = [(start, losses[start : start + LOSSES_A_POINT]) for start in range(0, len(losses), LOSSES_A_POINT)]
    return [(start + len(group), sum(group) / len(group)) for start, group in groups]
