"""cuBLASLt through ctypes: the library's own candidates for a product, so that they can be measured against each other.

torch's product takes the first candidate.  NVIDIA, cuBLAS 13 documentation, "Using the cuBLASLt API".
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

LIBRARY = "libcublasLt.so.{major}"  # torch has loaded it
COMPUTE_F32, SCALE_F32 = 68, 0
TYPES = {torch.bfloat16: 14, torch.float16: 2}
TRANSPOSE_A, TRANSPOSED = 3, 1
MAX_WORKSPACE_BYTES = 1  # attribute of a preference
MAX_CANDIDATES = 8


class _Candidate(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algo", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclass(slots=True)
class Product:
    """out `[m, n]` = x `[m, k]` @ weight `[n, k]`.T in one dtype, with the candidates the library offers for it."""

    description: ctypes.c_void_p
    weight_layout: ctypes.c_void_p
    x_layout: ctypes.c_void_p
    out_layout: ctypes.c_void_p
    candidates: ctypes.Array[_Candidate]
    num_candidates: int


class CublasLt:
    """A handle with a workspace.  OSError if the library cannot be found.  Calls share a stream."""

    def __init__(self, device: torch.device, workspace_bytes: int) -> None:
        major = (torch.version.cuda or "0").partition(".")[0]
        self._lib = ctypes.CDLL(LIBRARY.format(major=major))
        self._handle = ctypes.c_void_p()
        self._check(self._lib.cublasLtCreate(ctypes.byref(self._handle)))
        self._workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        self._lib.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = int(self._lib.cublasLtGetVersion())

    def product(self, m: int, n: int, k: int, dtype: torch.dtype) -> Product:
        """Ask the library for its candidates.  RuntimeError if it has none."""
        # column-major there: out^T [n, m] = weight [k, n]^T x [k, m]
        description = ctypes.c_void_p()
        self._check(self._lib.cublasLtMatmulDescCreate(ctypes.byref(description), COMPUTE_F32, SCALE_F32))
        transposed = ctypes.c_int(TRANSPOSED)
        self._check(self._lib.cublasLtMatmulDescSetAttribute(description, TRANSPOSE_A, ctypes.byref(transposed), 4))
        layouts = [self._layout(dtype, *shape) for shape in ((k, n), (k, m), (n, m))]
        preference, most = ctypes.c_void_p(), ctypes.c_uint64(self._workspace.nbytes)
        self._check(self._lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
        self._check(
            self._lib.cublasLtMatmulPreferenceSetAttribute(preference, MAX_WORKSPACE_BYTES, ctypes.byref(most), 8)
        )
        candidates, found = (_Candidate * MAX_CANDIDATES)(), ctypes.c_int()
        weight, x, out = layouts
        self._check(
            self._lib.cublasLtMatmulAlgoGetHeuristic(
                self._handle,
                description,
                weight,
                x,
                out,
                out,
                preference,
                MAX_CANDIDATES,
                candidates,
                ctypes.byref(found),
            )
        )
        self._lib.cublasLtMatmulPreferenceDestroy(preference)
        if not found.value:
            raise RuntimeError(f"cuBLASLt has no algorithm for {m} x {n} x {k}")
        return Product(description, weight, x, out, candidates, found.value)

    def run(self, product: Product, candidate: int, weight: Tensor, x: Tensor, out: Tensor) -> None:
        """Queue the product by one of its candidates on the current stream.  RuntimeError if it refuses."""
        pointer = ctypes.c_void_p
        self._check(
            self._lib.cublasLtMatmul(
                self._handle,
                product.description,
                ctypes.byref(self._one),
                pointer(weight.data_ptr()),
                product.weight_layout,
                pointer(x.data_ptr()),
                product.x_layout,
                ctypes.byref(self._zero),
                pointer(out.data_ptr()),
                product.out_layout,
                pointer(out.data_ptr()),
                product.out_layout,
                ctypes.byref(product.candidates[candidate].algo),
                pointer(self._workspace.data_ptr()),
                ctypes.c_size_t(self._workspace.nbytes),
                pointer(torch.cuda.current_stream().cuda_stream),
            )
        )

    def _layout(self, dtype: torch.dtype, rows: int, columns: int) -> ctypes.c_void_p:
        layout = ctypes.c_void_p()
        self._check(
            self._lib.cublasLtMatrixLayoutCreate(
                ctypes.byref(layout),
                TYPES[dtype],
                ctypes.c_uint64(rows),
                ctypes.c_uint64(columns),
                ctypes.c_int64(rows),
            )
        )
        return layout

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"cuBLASLt answered with status {status}")
