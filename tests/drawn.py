"""Texts of tokens that are drawn at random from those that a grammar allows."""

import random

import numpy as np
from vocabularies import CONTROL, MERGES, PIECES, USER_DEFINED, byte_level, sentence_piece

from mmrt.text.constraint import Constraint
from mmrt.text.grammar import Grammar
from mmrt.text.tokenizer import Tokenizer

CONTROLS = [("<|im_end|>", CONTROL), ("<|mark|>", CONTROL), ("  ", USER_DEFINED)]
BPE = Tokenizer.from_metadata(
    byte_level([*MERGES, '" :', '{ "', '" ,', '" }'], CONTROLS, eos_token_id=0), "bpe"
)
SPM = Tokenizer.from_metadata(
    sentence_piece([*PIECES, ('{"', -3.0), ("▁1", -3.0), ('":', -2.0)], CONTROLS), "spm"
)
TOKENIZERS = {"bpe": BPE, "spm": SPM}


def allowed(constraint: Constraint, tokenizer: Tokenizer) -> list[int]:
    bits = np.unpackbits(constraint.mask.view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


def written(tokenizer: Tokenizer, grammar: Grammar, seed: int, most: int = 400) -> str | None:
    """What comes of tokens drawn at random from those that are allowed; None: it did not end. What
    ends strings, lists and objects is liked best."""
    constraint = Constraint(tokenizer, grammar)
    draws = random.Random(seed)
    ids: list[int] = []
    for _ in range(most):
        tokens = allowed(constraint, tokenizer)
        assert all(token < tokenizer.vocab_size for token in tokens)
        liked = [
            token for token in tokens if tokenizer.token_bytes(token)[:1] in (b'"', b"}", b"]")
        ]
        token = draws.choice(liked if liked and draws.random() < 0.5 else tokens)
        if token in tokenizer.stop_ids:
            return tokenizer.decode(ids)
        assert not tokenizer.is_special(token) or len(grammar) > 1
        ids.append(token)
        constraint.take(token)
        if constraint.over:
            return tokenizer.decode(ids)
    return None
