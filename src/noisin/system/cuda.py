"""The CUDA libraries of MXNet's GPU build."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata

# In the order of their dependencies; requirements-gpu.txt pins them.
_CUDA_PACKAGES = (
    "cuda-runtime",
    "nvtx",
    "cuda-nvrtc",
    "cublas",
    "cufft",
    "curand",
    "cusparse",
    "cusolver",
    "cudnn",
    "nccl",
)


def load_cuda_libraries() -> None:
    """Load the CUDA libraries of MXNet's GPU build from where pip installs them; with the CPU build, do nothing.

    The dynamic linker does not search site-packages.

    Raises
    ------
    ImportError
        If NVIDIA's driver or a library is missing or does not load.
    """
    try:
        metadata.version("mxnet-cu117")
    except metadata.PackageNotFoundError:
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise ImportError(
            "MXNet's GPU build needs NVIDIA's driver (libcuda.so.1), which is not on this machine: "
            "install the driver, or take the CPU build (pip install mxnet==1.9.1 in place of mxnet-cu117)"
        ) from None
    os.environ.setdefault("MXNET_CUDNN_LIB_CHECKING", "0")  # else a warning that cuDNN is newer than at its build
    for package in (f"nvidia-{name}-cu11" for name in _CUDA_PACKAGES):
        try:
            files = metadata.files(package) or ()
            for file in files:
                if file.match("lib/lib*.so*"):
                    ctypes.CDLL(str(file.locate()), mode=ctypes.RTLD_GLOBAL)
        except (metadata.PackageNotFoundError, OSError) as error:
            raise ImportError(
                f"MXNet's GPU build needs {package}, which is missing or does not load ({error}): "
                "pip install --no-deps -r requirements-gpu.txt"
            ) from None
