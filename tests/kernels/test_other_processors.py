"""The kernels' paths for processors that this one may not be: those with AVX-512, AVX VNNI or AMX compute what the references say, their
instructions replaced by plain loops (emulated/immintrin.h), and all sources compile for them as they are."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from actorllm_kernels import attention, native
from actorllm_kernels.linear import cpu, reference
from tests.kernels.ragged_pool import Pool
from tests.kernels.test_attention_cpu import close
from tests.kernels.test_int8_cache_cpu import int8_pool

EMULATED = Path(__file__).parent / "emulated"
IS_X86 = platform.machine() in ("x86_64", "AMD64")
VNNI = "-D__AVX2__ -D__AVX512F__ -D__AVX512VNNI__"
PATHS = {"AVX-512 VNNI": VNNI, "AMX": f"{VNNI} -D__AMX_INT8__ -D__AMX_BF16__", "AVX VNNI": "-D__AVX2__ -D__AVXVNNI__"}
SHAPES = [(1, 1, 1), (1, 130, 64), (2, 16, 31), (3, 17, 33), (5, 100, 257), (6, 64, 128), (7, 15, 96), (13, 49, 600), (32, 81, 160), (50, 70, 200)]


@pytest.fixture(scope="module", params=PATHS)
def kernels(request, tmp_path_factory):
    """The kernels of linears and attention, compiled for a processor that has the instructions."""
    if native.library() is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    for source in (*native.SOURCES.glob("*.h"), *native.SOURCES.glob("linear_*.cpp"), native.SOURCES / "attention.cpp"):
        shutil.copy(source, folder)
    plain = "-march=x86-64 " if IS_X86 else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "SOURCES", folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("ACTORLLM_CXXFLAGS", f"{plain}{PATHS[request.param]} -O1 -I{EMULATED}")
        native.library.cache_clear()
        native.function.cache_clear()
        try:
            assert native.library() is not None
            yield
        finally:
            native.library.cache_clear()
            native.function.cache_clear()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_codes_and_of_halves(shape):
    num_rows, num_outputs, num_inputs = shape
    generator = torch.Generator().manual_seed(num_inputs)
    x_TI, w_OI = torch.randn(num_rows, num_inputs, generator=generator), torch.randn(num_outputs, num_inputs, generator=generator)
    packed = reference.pack_int8(*reference.int8_codes(w_OI))
    assert torch.equal(cpu.linear_int8(x_TI, *packed, num_outputs), reference.linear_int8(x_TI, *packed, num_outputs))
    for group_len in (32, 128):
        packed = reference.pack_int4(*reference.int4_codes(w_OI, group_len), group_len)
        got = cpu.linear_int4(x_TI, *packed, num_outputs)
        torch.testing.assert_close(got, reference.linear_int4(x_TI, *packed, num_outputs), atol=1e-4, rtol=1e-4)
    halves = reference.pack_bf16(reference.bf16_codes(w_OI))
    got = cpu.linear_bf16(x_TI, halves, num_outputs)
    torch.testing.assert_close(got, reference.linear_bf16(x_TI, halves, num_outputs), atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("code", [-127, 127])
def test_the_largest_codes(code):
    x_TI, codes_OI = torch.tensor([[1.0], [-1.0]]).repeat(4, 512), torch.full((17, 512), code, dtype=torch.int8)
    packed = reference.pack_int8(codes_OI, torch.ones(17))
    assert torch.equal(cpu.linear_int8(x_TI, *packed, 17), reference.linear_int8(x_TI, *packed, 17))
    packed = reference.pack_int4(codes_OI.clamp(-8, 7), torch.ones(17, 4).bfloat16(), 128)
    torch.testing.assert_close(cpu.linear_int4(x_TI, *packed, 17), reference.linear_int4(x_TI, *packed, 17))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("head_dim", [10, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_attention(dtype, head_dim):
    for rows, heads, window in (([(5, 70), (1, 9), (40, 40)], (6, 2), None), ([(33, 100)], (4, 4), 20), ([(20, 1100)], (1, 1), None)):
        pool, scales = Pool(rows, *heads, head_dim=head_dim), {}
        if dtype == torch.int8:
            scales = int8_pool(pool)
        pool.k, pool.v = pool.k.to(dtype), pool.v.to(dtype)
        got = pool.attend(attention.cpu, window=window, **scales)
        if dtype == torch.bfloat16:
            pool.k, pool.v = pool.k.float(), pool.v.float()
        close(got, pool.attend(attention.reference, window=window, **scales))


@pytest.mark.skipif(not IS_X86, reason="needs a compiler for x86")
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "skylake-avx512", "icelake-server", "sapphirerapids", "alderlake"])
def test_sources_compile(processor, tmp_path):
    """Without vectors' intrinsics, with AVX2, AVX-512 without VNNI, with it, with AMX too, and AVX VNNI alone."""
    compiler = next(filter(None, map(shutil.which, native.COMPILERS)), None)
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    sources = map(str, sorted(native.SOURCES.glob("*.cpp")))
    command = [compiler, *native.FLAGS, "-Werror=return-type", f"-march={processor}", "-O0", "-c", *sources]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=native.COMPILE_SECONDS)
    assert made.returncode == 0, made.stderr[-2000:]
