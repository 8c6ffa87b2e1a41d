"""Choosing tokens from rows of logits, in the core; mmrt.core.sampling has the formulae."""

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from mmrt.core._c cimport (
    MMRT_OK, mmrt_alternative, mmrt_bias, mmrt_distribution, mmrt_draw, mmrt_error, mmrt_isa,
    mmrt_pool, mmrt_sample, mmrt_status,
)
from mmrt.core._status cimport check
from mmrt.core.kernels cimport Pool, chosen_isa

from collections import namedtuple

from mmrt.errors import ArgumentError

Drawn = namedtuple("Drawn", "token logprob alternatives")


cdef int _set_biases(mmrt_draw *draw, mmrt_bias *room, sampling) except -1:
    """`room` has place for them, and stays for as long as the draw."""
    cdef size_t i = 0
    if not sampling.logit_bias:
        return 0
    for token, bias in sampling.logit_bias.items():
        room[i].token = token
        room[i].bias = bias
        i += 1
    draw.biases = room
    draw.n_biases = i
    return 0


cdef int _set(mmrt_draw *draw, sampling, const float[:] logits, const int32_t[::1] recent,
              mask) except -1:
    """Sets all that a draw is made from."""
    cdef const uint32_t[::1] words
    cdef Py_ssize_t needed = (logits.shape[0] + 31) // 32
    draw.sampling.temperature = sampling.temperature
    draw.sampling.top_k = min(sampling.top_k, 0xffffffff)
    draw.sampling.top_p = sampling.top_p
    draw.sampling.min_p = sampling.min_p
    draw.sampling.repeat_penalty = sampling.repeat_penalty
    draw.sampling.presence_penalty = sampling.presence_penalty
    draw.sampling.frequency_penalty = sampling.frequency_penalty
    draw.logits = &logits[0]
    draw.n_recent = recent.shape[0]
    if recent.shape[0]:
        draw.recent = &recent[0]
    if mask is not None:
        words = mask
        if words.shape[0] < needed:
            raise ArgumentError(f"mask: {words.shape[0]} words where {needed} are needed")
        draw.mask = &words[0]
    return 0


def draw(const float[:, ::1] logits not None, samplings not None, recent not None,
         uniforms not None, masks=None, alternatives=None, Pool pool=None):
    """One token for each row of `logits`, float32 (rows, vocabulary): a list of Drawn.

    For each row: samplings, a Sampling; recent, int32, the tokens that penalties apply to;
    uniforms, a number in [0, 1) that picks one of the candidates, which are in order of token id;
    masks (None: no row has one), None or uint32 (ceil(vocabulary / 32),) whose bit i % 32 of word
    i // 32 says whether token i is allowed.
    alternatives: None, or the number of likeliest tokens to list; then each Drawn has the token's
    log-probability by the model's own logits, and (token, log-probability) of these, the likeliest
    first. pool: the threads that share the rows; None: the caller's alone.

    Raises ArgumentError if a logit is NaN, the highest that is allowed is not finite, or a token
    in `recent` has no logit.
    """
    cdef size_t n = logits.shape[0], vocabulary = logits.shape[1], i, listed = 0
    cdef size_t n_biases = 0
    cdef mmrt_draw *draws
    cdef mmrt_bias *biases = NULL
    cdef mmrt_alternative *found = NULL
    cdef mmrt_pool *threads = NULL if pool is None else pool.handle
    cdef mmrt_isa isa = chosen_isa()
    cdef mmrt_status status
    cdef mmrt_error error
    if not len(samplings) == len(recent) == len(uniforms) == n or masks and len(masks) != n:
        raise ArgumentError(f"draw: samplings for {len(samplings)} of {n} rows")
    if n == 0:
        return []
    if vocabulary == 0:
        raise ArgumentError("logits: the rows are empty")
    if alternatives is not None:
        listed = min(<size_t> alternatives, vocabulary)
    for sampling in samplings:
        n_biases += len(sampling.logit_bias or ())
    draws = <mmrt_draw *> calloc(n, sizeof(mmrt_draw))
    if n_biases:
        biases = <mmrt_bias *> calloc(n_biases, sizeof(mmrt_bias))
    if listed:
        found = <mmrt_alternative *> calloc(n * listed, sizeof(mmrt_alternative))
    try:
        if draws is NULL or (listed and found is NULL) or (n_biases and biases is NULL):
            raise MemoryError
        n_biases = 0
        for i in range(n):
            if samplings[i].logit_bias:
                _set_biases(&draws[i], biases + n_biases, samplings[i])
                n_biases += draws[i].n_biases
            _set(&draws[i], samplings[i], logits[i], recent[i], masks[i] if masks else None)
            draws[i].uniform = uniforms[i]
            draws[i].wants_logprob = alternatives is not None
            draws[i].n_alternatives = listed
            draws[i].alternatives = found + i * listed if listed else NULL
        with nogil:
            status = mmrt_sample(threads, isa, draws, n, vocabulary, &error)
        if status != MMRT_OK:
            check(status, &error)
        return [_drawn(&draws[i], alternatives is not None) for i in range(n)]
    finally:
        free(draws)
        free(biases)
        free(found)


cdef _drawn(const mmrt_draw *draw, bint logprob):
    if not logprob:
        return Drawn(draw.token, None, ())
    listed = tuple([
        (draw.alternatives[i].token, draw.alternatives[i].logprob)
        for i in range(<Py_ssize_t> draw.n_alternatives)
    ])
    return Drawn(draw.token, draw.logprob, listed)


def distribution(const float[::1] logits not None, sampling not None, const int32_t[::1] recent
                 not None, mask=None):
    """What draw() chooses from: the ids of the tokens that pass the filters, int32 in rising order,
    and the probability of each, float32. Arguments and errors as for one row of draw()."""
    import numpy

    cdef mmrt_draw one
    cdef mmrt_error error
    cdef mmrt_status status
    cdef size_t n = 0, vocabulary = logits.shape[0]
    cdef mmrt_isa isa = chosen_isa()
    if vocabulary == 0:
        raise ArgumentError("logits: the row is empty")
    memset(&one, 0, sizeof(one))
    _set(&one, sampling, logits, recent, mask)
    cdef size_t n_biases = len(sampling.logit_bias or ())
    cdef mmrt_bias *biases = NULL
    ids, odds = numpy.empty(vocabulary, numpy.int32), numpy.empty(vocabulary, numpy.float32)
    cdef int32_t[::1] tokens = ids
    cdef float[::1] probabilities = odds
    if n_biases:
        biases = <mmrt_bias *> calloc(n_biases, sizeof(mmrt_bias))
        if biases is NULL:
            raise MemoryError
    try:
        _set_biases(&one, biases, sampling)
        with nogil:
            status = mmrt_distribution(
                isa, &one, vocabulary, &tokens[0], &probabilities[0], &n, &error
            )
    finally:
        free(biases)
    check(status, &error)
    return ids[:n].copy(), odds[:n].copy()
