"""The cases of the benchmark of GPU kernels, and how it reports them."""
