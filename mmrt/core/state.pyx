"""What a model keeps of the texts that it reads: keys and values, in pages that texts share."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from mmrt.core._c cimport (
    MMRT_OK, MMRT_SAVED_TOKENS, MMRT_STATE_BLOCK, MMRT_STATE_NOTHING, MMRT_STATE_PAGES,
    MMRT_STATE_PAGES_OF_LAYER, mmrt_error,
    mmrt_heads_are_apart, mmrt_key_room,
    mmrt_layer_state, mmrt_page_held, mmrt_state_adopt, mmrt_state_attach, mmrt_state_block_bytes,
    mmrt_state_bytes, mmrt_state_check, mmrt_state_checkpoint, mmrt_state_checkpoints,
    mmrt_state_create, mmrt_state_forget,
    mmrt_state_fork, mmrt_state_free, mmrt_state_growth, mmrt_state_length,
    mmrt_state_mapped_bytes, mmrt_state_page_bytes, mmrt_state_page_table, mmrt_state_reach,
    mmrt_state_rewind, mmrt_state_save, mmrt_state_saved_bytes, mmrt_state_shared_bytes,
    mmrt_state_sharing,
    mmrt_state_store_bytes, mmrt_state_store_create, mmrt_state_store_free,
    mmrt_state_store_mapped_bytes, mmrt_state_store_sharing, mmrt_state_trim, mmrt_status,
)
from mmrt.core._calls cimport calls_now
from mmrt.core._status cimport check

from typing import NamedTuple

from mmrt.core.elements import KV_TYPES
from mmrt.core.quant import TYPES
from mmrt.errors import ArgumentError, FormatError, InUseError

PAGE_TOKENS = 32

# Tokens that one file takes at most: see Cache.save().
SAVED_TOKENS = MMRT_SAVED_TOKENS


class KeyValues(NamedTuple):
    """What a layer keeps of each token: keys and values of `n_heads` heads of `head_dim` elements.
    window: the keys that a token sees, its own the last; 0 for all. values_in_keys: if not 0, so
    many elements of a key, the first, are the value too, which is not kept again. of_layer: those
    of this earlier layer, which are not kept again either; None: the layer's own."""

    n_heads: int
    head_dim: int
    window: int = 0
    values_in_keys: int = 0
    of_layer: int | None = None


class Block(NamedTuple):
    """What a recurrent layer keeps of all tokens together: `n_floats` numbers, each step's anew."""

    n_floats: int


class Page(NamedTuple):
    """A page of 32 tokens, as a text holds it. number: the same in all texts that hold this page,
    and in no others. holders: so many texts."""

    number: int
    holders: int


class Sharing(NamedTuple):
    """What texts share, in bytes. held: in memory. logical: what they would hold together if none
    shared any. copies: pages that were copied so far, as a text went on in one that others held."""

    held: int
    logical: int
    copies: int

    @property
    def saved(self) -> int:
        """Bytes that would be taken besides."""
        return self.logical - self.held


cdef class StateStore:
    """The memory of all texts that a model reads, and what each of its layers keeps there.

    layers: KeyValues, or None of a layer that keeps nothing.
    kv_k, kv_v: how keys and values are stored, "f16" or "q8_0". Raises ArgumentError or
    UnsupportedError, naming the layer, for what cannot be laid out.
    """

    def __cinit__(self, layers not None, str kv_k="f16", str kv_v="f16"):
        cdef mmrt_error error
        for name in (kv_k, kv_v):
            if name not in KV_TYPES:
                raise ArgumentError(
                    f"keys and values of type {name!r:.60}: there are {', '.join(KV_TYPES)}"
                )
        self.layers = tuple(layers)
        self.specs = <mmrt_layer_state *> calloc(len(self.layers) + 1, sizeof(mmrt_layer_state))
        if self.specs is NULL:
            raise MemoryError
        for i, layer in enumerate(self.layers):
            if layer is None:
                self.specs[i].kind = MMRT_STATE_NOTHING
                continue
            if isinstance(layer, Block):
                self.specs[i].kind = MMRT_STATE_BLOCK
                self.specs[i].block_bytes = 4 * layer.n_floats
                continue
            n_heads, head_dim, window, values_in_keys, of_layer = layer
            self.specs[i].kind = MMRT_STATE_PAGES
            if of_layer is not None:
                self.specs[i].kind = MMRT_STATE_PAGES_OF_LAYER
                self.specs[i].layer = of_layer
            self.specs[i].n_heads = n_heads
            self.specs[i].k_dim = head_dim
            self.specs[i].v_dim = values_in_keys or head_dim
            self.specs[i].v_in_keys = values_in_keys > 0
            self.specs[i].k_type = TYPES[KV_TYPES[kv_k]].id
            self.specs[i].v_type = TYPES[KV_TYPES[kv_v]].id
            self.specs[i].window = window
        check(
            mmrt_state_store_create(self.specs, len(self.layers), &self.handle, &error), &error
        )

    def __dealloc__(self):
        mmrt_state_store_free(self.handle)
        free(self.specs)

    def __repr__(self):
        return f"<StateStore of {len(self.layers)} layers, {self.nbytes} bytes>"

    def cache(self):
        """What a new, empty text has in it."""
        return Cache(self)

    def layer(self, int index):
        """The keys and values that this layer keeps. FormatError: there is no such layer, or it
        keeps none."""
        if not 0 <= index < len(self.layers):
            raise FormatError(f"layer {index}: there are {len(self.layers)} layers")
        if not isinstance(self.layers[index], KeyValues):
            raise FormatError(f"layer {index}: it keeps no keys and values")
        return self.layers[index]

    @property
    def is_recurrent(self):
        """Whether a layer keeps a block: then texts go back to their checkpoints alone."""
        return any(isinstance(layer, Block) for layer in self.layers)

    def head_room(self, int layer):
        """Elements that a head of the layer takes in buffers of attention."""
        self.layer(layer)
        return mmrt_key_room(&self.specs[layer])

    def heads_are_apart(self, int layer):
        """Whether attention leaves heads that a `join` has to put together."""
        self.layer(layer)
        return mmrt_heads_are_apart(&self.specs[layer])

    @property
    def nbytes(self):
        """Bytes that all caches hold together: what several share counts once."""
        return mmrt_state_store_bytes(self.handle)

    @property
    def sharing(self):
        """What the texts share now."""
        cdef mmrt_state_sharing sharing
        mmrt_state_store_sharing(self.handle, &sharing)
        return Sharing(sharing.held, sharing.logical, sharing.copies)

    @property
    def mapped_nbytes(self):
        """Bytes of saved pages that all caches hold together, in files that are mapped."""
        return mmrt_state_store_mapped_bytes(self.handle)

    @property
    def page_bytes(self):
        """Bytes that a cache takes for 32 tokens."""
        return mmrt_state_page_bytes(self.handle)

    @property
    def block_bytes(self):
        """Bytes that a checkpoint takes; 0: texts go back without."""
        return mmrt_state_block_bytes(self.handle)

    @property
    def saved_bytes(self):
        """Bytes that SAVED_TOKENS tokens take in a file; 0: files cannot hold them."""
        return mmrt_state_saved_bytes(self.handle)


cdef class Cache:
    """The keys and values of one text, in pages that are allocated as it grows; and its `tokens`.

    A child that is forked while another thread has it in a step finds it as it was before.
    """

    def __cinit__(self, StateStore store not None):
        cdef mmrt_error error
        self.store = store
        self.ids = []
        check(mmrt_state_create(store.handle, &self.handle, &error), &error)

    def __dealloc__(self):
        mmrt_state_free(self.handle)

    def __repr__(self):
        return f"<Cache of {self.length} tokens, {self.nbytes} bytes>"

    cdef cut(self, uint64_t length):
        cdef uint64_t reached = mmrt_state_rewind(self.handle, length)
        del self.ids[reached:]
        return reached

    cdef settle(self):
        """Ends, in a forked child, the step that the parent goes on with."""
        if self.busy.n and not calls_now(&self.busy):
            self.busy.n = 0
            self.cut(self.before)

    cdef int require_rest(self) except -1:
        self.settle()
        if self.busy.n:
            raise InUseError("this sequence is running in another thread")
        return 0

    @property
    def tokens(self):
        """The tokens held; the list is the cache's own."""
        self.settle()
        return self.ids

    @property
    def length(self):
        """Tokens held."""
        self.settle()
        return mmrt_state_length(self.handle)

    @property
    def nbytes(self):
        """Bytes that it holds, alone or together with its forks."""
        self.settle()
        return mmrt_state_bytes(self.handle)

    @property
    def shared_nbytes(self):
        """Of these, those that others hold too."""
        self.settle()
        return mmrt_state_shared_bytes(self.handle)

    def pages(self):
        """Its pages in order: page i holds the tokens from 32 * i on."""
        cdef uint64_t room = mmrt_state_page_table(self.handle, NULL, 0), n
        cdef mmrt_page_held *held
        self.settle()
        while True:
            held = <mmrt_page_held *> calloc(room + 1, sizeof(mmrt_page_held))
            if held is NULL:
                raise MemoryError
            try:
                n = mmrt_state_page_table(self.handle, held, room)
                if n <= room:
                    return [Page(held[i].number, held[i].holders) for i in range(n)]
                room = n  # another thread has gone on meanwhile
            finally:
                free(held)

    @property
    def mapped_nbytes(self):
        """Bytes of saved pages that it holds, in files that are mapped."""
        self.settle()
        return mmrt_state_mapped_bytes(self.handle)

    def growth(self, uint64_t length, bint exact=False):
        """Bytes that it would take to become `length` tokens long; exact: by an exact part of a
        step, after which it can go back to each of its tokens."""
        self.settle()
        return mmrt_state_growth(self.handle, length, exact)

    def fork(self):
        """Another cache of the same tokens, which holds the same pages; nothing is copied. Where
        one of the two then goes on in a page that is not full, it copies this page.

        Raises ArgumentError while a step of another thread extends it.
        """
        cdef mmrt_error error
        self.require_rest()
        cdef Cache fork = Cache(self.store)
        mmrt_state_free(fork.handle)
        fork.handle = NULL
        check(mmrt_state_fork(self.handle, &fork.handle, &error), &error)
        fork.ids = list(self.ids)
        return fork

    def truncate(self, length):
        """Forgets the tokens from `length` on, and lets go of whole pages, which go back to the
        system unless others hold them. Returns how many tokens are left: reach(length)."""
        self.require_rest()
        if not 0 <= length <= self.length:
            raise ArgumentError(f"cannot cut {self.length} tokens to {length}")
        return self.cut(length)

    def trim(self):
        """Gives back what is there for further steps alone: the text has ended for now."""
        self.require_rest()
        mmrt_state_trim(self.handle)

    def reach(self, uint64_t length):
        """How many tokens truncate(length) would leave: `length`, or where a layer keeps what
        cannot be undone, those of the last checkpoint up to there, without one 0."""
        self.settle()
        return mmrt_state_reach(self.handle, length)

    def checkpoint(self):
        """Has it come back to where it is now, whatever follows. Where it can go back anywhere,
        nothing is done; else a checkpoint takes StateStore.block_bytes once the text goes on."""
        cdef mmrt_error error
        self.require_rest()
        check(mmrt_state_checkpoint(self.handle, &error), &error)

    @property
    def checkpoints(self):
        """The lengths that it can come back to, as a list."""
        cdef uint64_t room = 0, n
        cdef uint64_t *lengths = NULL
        self.settle()
        while True:
            n = mmrt_state_checkpoints(self.handle, lengths, room)
            if n <= room:
                found = [lengths[i] for i in range(n)]
                free(lengths)
                return found
            free(lengths)
            room = n
            lengths = <uint64_t *> calloc(room, sizeof(uint64_t))
            if lengths is NULL:
                raise MemoryError

    def forget(self, uint64_t length):
        """It has no checkpoint of this length any more."""
        self.require_rest()
        mmrt_state_forget(self.handle, length)

    def adopt(self, Cache other not None):
        """Has it come back to where `other` can, and to its end, whose tokens are the same as far
        as either goes. Raises OutOfMemoryError, and ArgumentError for another model's."""
        cdef mmrt_error error
        self.require_rest()
        other.require_rest()
        check(mmrt_state_adopt(self.handle, other.handle, &error), &error)

    @property
    def is_whole(self):
        """Whether no file whose pages it holds has lost some of them."""
        return mmrt_state_check(self.handle, NULL) == MMRT_OK

    def save(self, first, n, fd, offset):
        """Writes the pages of tokens `first` to `first + n - 1` to a file, from byte `offset` on.
        first: a multiple of SAVED_TOKENS; n: SAVED_TOKENS at most. Returns their checksum.

        Where layers keep blocks, that of the last token follows after StateStore.saved_bytes, if
        the cache ends there or has a checkpoint there.

        Other threads may not change the cache meanwhile: save a fork. Raises ArgumentError for
        tokens that it does not have, FileError where the system refuses, UnsupportedError for a
        model that keeps no keys and values.
        """
        cdef mmrt_error error
        cdef uint64_t first_ = first, n_ = n, offset_ = offset, total = 0
        cdef int descriptor = fd
        cdef mmrt_status status
        self.require_rest()
        with nogil:
            status = mmrt_state_save(
                self.handle, first_, n_, descriptor, offset_, &total, &error
            )
        check(status, &error)
        return total

    def attach(self, path, offset, ids, checksum, bint with_block=False):
        """Lengthens the cache, of a multiple of SAVED_TOKENS tokens, by `ids`, whose pages were
        saved in that file: they are mapped, and read once to be checked. with_block: the file has
        the block after them too. Without it, where layers keep one, the cache takes no step until
        another file has brought one, or it is cut.

        Raises FormatError if they do not give the checksum, FileError, ArgumentError for a cache of
        another length; then it is as it was.
        """
        cdef mmrt_error error
        cdef bytes name = path.encode("utf-8", "surrogateescape")
        cdef const char *path_ = name
        cdef uint64_t offset_ = offset, n = len(ids), total = checksum
        cdef mmrt_status status
        self.require_rest()
        with nogil:
            status = mmrt_state_attach(
                self.handle, path_, offset_, n, with_block, total, &error
            )
        check(status, &error)
        self.ids.extend(ids)
