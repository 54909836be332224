"""Triton kernels, each file with its kernels, the functions that launch them, and `variants` (see `aot`).

A launching function takes torch tensors, writes into those it is given, and neither allocates nor waits.  Needs triton.
"""
