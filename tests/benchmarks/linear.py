"""Linears on CPU beside stock torch operators and this machine's limits: `python tests/benchmarks/linear.py [--threads 2]`.

For K=2048, N=8192 and 1 to 512 rows: milliseconds, bytes of weights read a second and operations a second of bfloat16, int8 and
int4 weights, of float32 in oneDNN's packed layout, and of torch's int8 operator for uint8 activations. Weights rotate through more
copies than the caches hold. The memory's read rate and the rate of float32 products are measured in the same run, and the operators
take turns, so that ratios hold on a machine that others use too.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import actorllm  # noqa: F401 - before torch: it bounds how long libgomp's threads spin

# isort: split
import torch
from torch import Tensor

from actorllm.execution.roofline import Probes
from actorllm_kernels.linear import Bf16, Form, Int4, Int8

NUM_INPUTS, NUM_OUTPUTS = 2048, 8192
ROTATED_BYTES = 96 * 2**20
Linear = Callable[[Tensor], object]


def of_form(form: Form, w_OI: Tensor) -> Linear:
    packed = form.pack(form.codes(w_OI))
    copies = [tuple(map(torch.clone, packed)) for _ in range(num_copies(form.bits_per_value))]
    turn = iter(range(2**62))
    return lambda x: form.linear(x, copies[next(turn) % len(copies)], NUM_OUTPUTS)


def stock_float32(w_OI: Tensor) -> Linear:
    copies = [torch.ops.mkldnn._reorder_linear_weight(w_OI, 64) for _ in range(num_copies(32))]
    turn = iter(range(2**62))
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, copies[next(turn) % len(copies)], None, "none", [], "")


def stock_int8(w_OI: Tensor) -> Linear:
    """Rows are rounded to uint8 around 128 beforehand, which is not timed."""
    codes, scales = Int8().codes(w_OI)
    copies = [torch.ops.onednn.qlinear_prepack(codes.clone(), None) for _ in range(num_copies(8))]
    zeros, turn, rows = torch.zeros(NUM_OUTPUTS, dtype=torch.int64), iter(range(2**62)), {}

    def call(x: Tensor) -> object:
        if len(x) not in rows:
            rows[len(x)] = torch.randint(0, 256, x.shape, dtype=torch.uint8)
        return torch.ops.onednn.qlinear_pointwise(
            rows[len(x)], 1.0, 128, copies[next(turn) % len(copies)], scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )

    return call


def num_copies(bits: float) -> int:
    return max(2, round(ROTATED_BYTES / (NUM_INPUTS * NUM_OUTPUTS * bits / 8)))


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128, 512])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    w_OI = torch.randn(NUM_OUTPUTS, NUM_INPUTS)
    sides: dict[str, tuple[Linear, float]] = {
        form.name: (of_form(form, w_OI), form.bits_per_value) for form in (Bf16(), Int8(), Int4())
    }
    sides["stock float32"] = stock_float32(w_OI), 32.0
    sides["stock int8"] = stock_int8(w_OI), 8.0
    probes = Probes()
    for num_rows in arguments.rows:
        x_TI = torch.randn(num_rows, NUM_INPUTS)
        times: dict[str, list[float]] = {name: [] for name in sides}
        reads, products = [], []
        for round_number in range(arguments.rounds + 1):
            for name, (linear, _) in sides.items():
                times[name].append(seconds(partial(linear, x_TI)))
            reads.append(probes.read_rate())
            products.append(probes.product_rate())
            if round_number == 0:  # warms up
                for values in (*times.values(), reads, products):
                    values.clear()
        bandwidth, rate = statistics.median(reads) / 1e9, statistics.median(products) / 1e9
        print(f"{num_rows} rows; the machine: {bandwidth:.1f} GB/s read, {rate:.0f} GFLOP/s float32")
        for name, (_, bits) in sides.items():
            median = statistics.median(times[name])
            read = NUM_INPUTS * NUM_OUTPUTS * bits / 8 / median / 1e9
            done = 2 * num_rows * NUM_INPUTS * NUM_OUTPUTS / median / 1e9
            print(f"  {name:14} {median * 1e3:8.2f} ms {read:6.1f} GB/s ({read / bandwidth:4.0%}) {done:6.0f} GOP/s", flush=True)


if __name__ == "__main__":
    main()
