"""The runner for CUDA: fused kernels over flat tokens, one graph per size of step, inputs in one copied block."""
