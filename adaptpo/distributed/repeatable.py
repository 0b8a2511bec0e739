"""Makes the same run give the same bits again: deterministic operations, and one number of threads from start to end.

Where several threads add to one place (the backward pass of indexing, for instance), the order of the additions decides
the last bit. How a sum or a matrix product is split depends on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adaptpo.errors import ModelError

NO_DETERMINISTIC_VERSION = "does not have a deterministic implementation"
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def repeatable(threads: int | None) -> Iterator[None]:
    """Inside the context, PyTorch uses deterministic operations and, if given, this number of threads.

    Raises ModelError for an operation that has no deterministic version.
    """
    mode, before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    filling = torch._C._get_deterministic_fill_uninitialized_memory()
    try:
        use_deterministic_operations()
        torch.set_num_threads(before if threads is None else threads)
        with explained():
            yield
    finally:
        torch.set_num_threads(before)
        torch._C._set_deterministic_fill_uninitialized_memory(filling)
        torch.set_deterministic_debug_mode(mode)


def use_deterministic_operations() -> None:
    """From here on, in this process."""
    if torch.cuda.is_available():
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    torch.set_deterministic_debug_mode("error")  # Unlike `use_deterministic_algorithms`, imports no compiler.
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # It finds bugs; results do not depend on it.


@contextmanager
def explained() -> Iterator[None]:
    """Turns PyTorch's refusal of an operation into a ModelError that names the remedy."""
    try:
        yield
    except RuntimeError as error:
        if NO_DETERMINISTIC_VERSION not in str(error):
            raise
        operation = str(error).split(NO_DETERMINISTIC_VERSION)[0].strip()
        raise ModelError(
            f"the model uses an operation without a deterministic version ({operation}); set "
            "training.full_determinism to false and start again: the run resumes, and its last bits may then differ "
            "from those of another run with the same seed"
        ) from error
