"""Logits of tiny models beside llama.cpp's, on the same files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import oracle
from measures import kl_divergence
from numpy.typing import NDArray
from tiny_architectures import tiny

import mmrt

IDS = np.random.default_rng(8).integers(0, 300, 70).tolist()
F32, F16 = 0, 1  # types of keys and values


class Distances(NamedTuple):
    """Mean KL divergences."""

    formulas: float  # the reference's from llama.cpp's, with keys and values in float32
    found: float  # mmrt's, in one step or token by token, from llama.cpp's, likewise in float16
    rounding: float  # llama.cpp's with keys and values in float16 from its own in float32


def of_llama_cpp(path: Path, ids: Sequence[int], kv: int) -> NDArray[np.float32]:
    """Its logits after each token, read in one step."""
    import llama_cpp

    peer = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        n_batch=512,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=kv,
        type_v=kv,
        yarn_beta_fast=-1.0,  # as the file says
        yarn_beta_slow=-1.0,
    )
    try:
        peer.eval(list(ids))
        return np.array(peer.scores[: len(ids)], np.float32)
    finally:
        peer.close()


# What llama.cpp does not run: it is compared with the reference alone.
WITHOUT_PEER = {"opt"}


def compare(architecture: str, rich: bool, folder: Path) -> Distances:
    path = tiny(architecture, rich).write(folder / f"{architecture}-{rich}.gguf")
    own = oracle.logits(path, IDS)
    if architecture in WITHOUT_PEER:
        in_f32 = own
        in_f16 = oracle.logits(path, IDS, rounding=True)
    else:
        in_f32, in_f16 = (of_llama_cpp(path, IDS, kv) for kv in (F32, F16))
    with mmrt.Model(path) as model:
        found = [model.logits(IDS)]
        with model.sequence() as sequence:
            found.append(np.stack([sequence.extend([token]) for token in IDS]))
    return Distances(
        formulas=mean_kl(in_f32, own),
        found=max(mean_kl(in_f16, logits) for logits in found),
        rounding=mean_kl(in_f32, in_f16),
    )


def mean_kl(reference: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    return float(kl_divergence(reference, logits).mean())
