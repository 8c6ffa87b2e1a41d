"""llama.cpp and its kin through the C functions of their bindings, so that Python costs nothing."""

import ctypes
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.engine import tokens

CONTEXT = 2048


class Llama:
    """api: the module of ctypes functions and structures; these are alike in all bindings."""

    def __init__(self, api: Any, version: str, model: Any, threads: int) -> None:
        self.api, self.version, self.model = api, version, model
        self._threads = threads
        self._batch = api.llama_batch_init(CONTEXT, 0, 1)
        self._begin(CONTEXT)

    def _begin(self, most: int) -> None:
        """A context for so many tokens."""
        options = self.api.llama_context_default_params()
        options.n_ctx, options.n_batch = most, CONTEXT
        options.n_threads = options.n_threads_batch = self._threads
        self.context = self.api.llama_init_from_model(self.model, options)
        self._most, self._position = most, 0

    def clear(self) -> None:
        """Forgets the text."""
        if hasattr(self.api, "llama_memory_clear"):
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        else:
            self.api.llama_kv_cache_clear(self.context)
        self._position = 0

    def read(self, ids: Sequence[int], all_logits: bool = False) -> None:
        """Goes on with the text; logits are made for its last token, or for all."""
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_logits or i == len(ids) - 1
        if self.api.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        if hasattr(self.api, "llama_synchronize"):
            self.api.llama_synchronize(self.context)
        self._position += len(ids)

    def logits(self, i: int, n_vocab: int) -> NDArray[np.float32]:
        """Of the i-th token that was read last."""
        values = self.api.llama_get_logits_ith(self.context, i)
        return np.ctypeslib.as_array(values, (n_vocab,)).copy()

    def prefill(self, n: int) -> float:
        self.clear()
        start = time.perf_counter()
        self.read(tokens(n))
        return time.perf_counter() - start

    def decode(self, n: int, depth: int = 1) -> float:
        if depth + n > self._most:
            self.api.llama_free(self.context)
            self._begin(depth + 16 * n)
        if depth == 1 or self._position + n > self._most:
            self.clear()
        for at in range(self._position, depth, CONTEXT):
            self.read(tokens(depth)[at : at + CONTEXT])
        start = time.perf_counter()
        for token in tokens(n):
            self.read([token])
        return time.perf_counter() - start


def llama_cpp(path: str, threads: int, repack: bool, load_mode: str = "AUTO") -> Llama:
    """llama-cpp-python. repack: whether it may make its second, rearranged copy. load_mode: as in
    its LLAMA_LOAD_MODE_*; AUTO maps the file."""
    import llama_cpp as api

    api.llama_backend_init()
    api.llama_log_set(_silent, None)
    model_options = api.llama_model_default_params()
    model_options.use_extra_bufts = repack
    model_options.load_mode = getattr(api, f"LLAMA_LOAD_MODE_{load_mode}")
    model = api.llama_model_load_from_file(path.encode(), model_options)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path} with load mode {load_mode}")
    return Llama(api, api.__version__, model, threads)


def ik_llama_cpp(path: str, threads: int, repack: bool) -> Llama:
    """ik-llama-cpp-python, mapped, or with weights read into memory and rearranged there."""
    import ik_llama_cpp
    from ik_llama_cpp import _ctypes_api as api

    api.llama_backend_init()
    model_options = api.llama_model_default_params()
    model_options.repack_tensors, model_options.use_mmap = repack, not repack
    model = api.llama_model_load_from_file(path.encode(), model_options)
    return Llama(api, ik_llama_cpp.__version__, model, threads)


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)  # type: ignore[untyped-decorator]
def _silent(level: int, text: bytes, data: object) -> None:
    pass
