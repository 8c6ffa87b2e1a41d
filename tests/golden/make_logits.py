"""Writes logits.json: what the reference and a peer say about passage.txt.

    python tests/golden/make_logits.py MODEL.gguf...

For each model: its token ids for the passage, the perplexity of the reference (tests/oracle.py) and
of llama-cpp-python, and how far the second is from the first. Whole logits would be hundreds of
megabytes; whoever needs them runs the oracle. The peer multiplies with activations rounded to int8:
that is most of its distance. Of a file above 1 GiB the first 256 tokens are compared, and the peer
multiplies with the mapped weights: with its rearranged copy of Qwen2.5-Coder's it crashes. Needs
llama-cpp-python and gguf, two minutes, and 3.5 GB of memory.
"""

import hashlib
import json
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import Llama

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

sys.path.append(str(HERE.parent.parent))

import measures  # noqa: E402
import oracle  # noqa: E402
import oracle_model  # noqa: E402
from oracle_functions import Array  # noqa: E402

from bench.llama import llama_cpp  # noqa: E402

LARGE, FEW = 1 << 30, 256

SETTINGS: dict[str, Any] = {
    "n_ctx": 1280,
    "n_batch": 512,
    "n_threads": 2,
    "n_threads_batch": 2,
    "use_mmap": True,
}


def peer_logits(path: Path, passage: bytes) -> tuple[list[int], Array]:
    """Token ids, with a beginning-of-sequence token where the file asks for one, and logits."""
    is_large = path.stat().st_size > LARGE
    options = {"vocab_only": True} if is_large else {"logits_all": True, **SETTINGS}
    peer = Llama(str(path), verbose=False, **options)
    add_bos = peer.metadata.get("tokenizer.ggml.add_bos_token") == "true"
    ids = peer.tokenize(passage, add_bos=add_bos, special=False)
    if is_large:
        ids = ids[:FEW]
        engine = llama_cpp(str(path), SETTINGS["n_threads"], repack=False)
        engine.read(ids, all_logits=True)
        return ids, np.stack([engine.logits(i, peer.n_vocab()) for i in range(len(ids))])
    peer.eval(ids)
    logits = np.array(peer.scores[: len(ids)], np.float32)
    peer.close()
    return ids, logits


def measure(path: Path, passage: bytes) -> dict[str, Any]:
    ids, logits = peer_logits(path, passage)
    reference = oracle.logits(path, ids)
    divergence = measures.kl_divergence(reference, logits)
    return {
        "file": path.name,
        "architecture": oracle_model.Model(path).architecture,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "positions": len(ids),
        "reference": {"perplexity": measures.perplexity(reference, ids)},
        "llama_cpp": {
            "perplexity": measures.perplexity(logits, ids),
            "kl_mean": float(divergence.mean()),
            "kl_max": float(divergence.max()),
            "argmax_agreement": measures.argmax_agreement(reference, logits),
        },
        "ids": ids,
    }


def main(paths: list[str]) -> None:
    passage = (HERE / "passage.txt").read_bytes()
    document = {
        "how": "python tests/golden/make_logits.py MODEL.gguf...",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "gguf", "llama-cpp-python")},
        },
        "llama_cpp_settings": SETTINGS,
        "passage_sha256": hashlib.sha256(passage).hexdigest(),
        "models": [measure(Path(path), passage) for path in paths],
    }
    text = json.dumps(document, indent=2)
    # Ids in a line, not in a column.
    text = re.sub(r"\[[\d,\s]+\]", lambda ids: str(json.loads(ids[0])), text)
    (HERE / "logits.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
