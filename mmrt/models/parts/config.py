"""The shape of a transformer, as its metadata gives it."""

from dataclasses import dataclass

from mmrt.core.state import Block, KeyValues
from mmrt.models.parts.activation import SILU, Activation
from mmrt.models.parts.experts import Experts
from mmrt.models.parts.fields import Fields, PerLayer
from mmrt.models.parts.recurrent import Recurrent
from mmrt.models.parts.rope import Rope, rope_from, rope_in_window_from

# What a layer keeps is listed before its tensors are looked for, so there must be an end to layers.
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class SlidingWindow:
    """Which layers see only so many keys, the latest."""

    size: int  # keys seen; 0: every layer sees all
    pattern: int | tuple[bool, ...]  # of so many layers all but the last; or which layers; 0: all

    def of(self, layer: int) -> int:
        """Keys that the layer sees, counted from 0; 0 for all."""
        return self.size if self.slides(layer) else 0

    def slides(self, layer: int) -> bool:
        """Whether the layer has a window, if any has."""
        if isinstance(self.pattern, tuple):
            return self.pattern[layer]
        return not self.pattern or layer % self.pattern < self.pattern - 1


@dataclass(frozen=True)
class Latent:
    """Keys and values that are made of one row a token, which is kept (DeepSeek-AI 2024,
    arXiv:2405.04434)."""

    values: int  # elements of the row that keys and values are made of
    turned: int  # and those after them, which turn with the position
    head_dim: int  # of a head's queries, of which the last `turned` turn
    result: int  # elements that a head gives


@dataclass(frozen=True)
class Config:
    architecture: str
    context_length: int  # tokens, as trained
    context: int  # tokens, the most of a sequence
    n_layers: int
    n_predicting: int  # layers after these, which guess further tokens and do not run
    n_embd: int  # width of the residual stream
    n_ff: PerLayer  # width of the feed-forward layers
    n_heads: int
    n_kv_heads: PerLayer
    head_dim: int
    head_dim_in_window: int  # of layers with a sliding window
    norm_eps: float
    rope: Rope
    rope_in_window: Rope  # of layers with a sliding window
    attention_scale: float  # of the scores
    attention_softcap: float  # 0: none
    logit_softcap: float  # 0: none
    window: SlidingWindow
    experts: Experts | None
    recurrent: Recurrent | None = None  # layers without attention
    activation: Activation = SILU  # of units, where the architecture has no other
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each part adds to the stream
    logit_scale: float = 1.0
    rotates: bool = True  # queries and keys, by their positions
    has_axes: bool = False  # positions have several, in images
    temperature: float = 0.0  # by which queries grow with their position; 0: they do not
    temperature_period: int = 0  # tokens
    latent: Latent | None = None  # None: keys and values are kept themselves
    n_sharing: int = 0  # the last layers that have no keys of their own: see keys_of()
    units_alone: tuple[bool, ...] = ()  # which layers keep nothing of a token; (): none
    layer_embedding: int = 0  # width of what each layer has of each token beside the stream
    part: range | None = None  # the layers that a program has; None: all

    @property
    def layers(self) -> range:
        """Those that a program has, counted from 0."""
        return range(self.n_layers) if self.part is None else self.part

    @property
    def kept(self) -> list[KeyValues | Block | None]:
        """What each layer of the model keeps of the tokens that were read: those that the program
        has not, nothing, or a mere number where they are recurrent, so that texts go back as far in
        each part of a model as in all of it."""
        return [self._kept_by(layer) for layer in range(self.n_layers)]

    def _kept_by(self, layer: int) -> KeyValues | Block | None:
        if self.recurrent is not None and self.recurrent.layers[layer]:
            return Block(self.recurrent.n_floats if layer in self.layers else 1)
        if layer not in self.layers or (self.units_alone and self.units_alone[layer]):
            return None
        within = 0 if self.latent is None else self.latent.values
        keys, window = self.keys_of(layer), self.window.of(layer)
        of_layer = None if keys == layer else keys
        heads, dim = self.n_kv_heads[keys], self.head_dim_of(keys)
        return KeyValues(heads, dim, window, within, of_layer)

    @property
    def n_keeping(self) -> int:
        """Layers that keep something of each token: those after them read only what these keep."""
        return self.n_layers - self.n_sharing

    def keys_of(self, layer: int) -> int:
        """The layer whose keys and values it reads: its own, or of those that keep some the last
        that sees as many tokens."""
        if layer < self.n_keeping:
            return layer
        slides, keeping = self.window.slides(layer), range(self.n_keeping)
        return next(i for i in reversed(keeping) if self.window.slides(i) == slides)

    def head_dim_of(self, layer: int) -> int:
        """Elements of a head of the layer, counted from 0."""
        return self.head_dim_in_window if self.window.of(layer) else self.head_dim

    def rope_of(self, layer: int) -> Rope:
        """The rotation of the layer, counted from 0."""
        return self.rope_in_window if self.window.of(layer) else self.rope


def transformer_config(
    fields: Fields,
    *,
    epsilon: str = "attention.layer_norm_rms_epsilon",
    window_pattern: int = 0,
    window_base: float | None = None,
    longrope: bool = False,
    experts: Experts | None = None,
    recurrent: bool = False,
    latent: Latent | None = None,
    by_layer: bool = False,
    alone: bool = False,
) -> Config:
    """The fields that all transformers share; architectures replace what they do otherwise.

    epsilon: the field of the norms' epsilon. window_pattern: which layers have a sliding window if
    the file has one and does not say; window_base: of their rotation, likewise (None: that of the
    others). longrope: the architecture has rotations by context. experts: those of an architecture
    that may have some. recurrent: some layers may have no heads of keys and values. latent: that of
    an architecture whose heads share the row that is kept of a token. by_layer: heads of keys may
    be others in each layer, and of another width where there is a window. alone: layers have one
    part each, and may have no unit either.
    """
    n_blocks = fields.integer("block_count")
    if n_blocks > _MOST_BLOCKS:
        raise fields.error("block_count", f"{n_blocks} exceeds the supported {_MOST_BLOCKS}")
    n_predicting = fields.integer("nextn_predict_layers", 0, least=0)
    if n_predicting >= n_blocks:
        raise fields.error(
            "nextn_predict_layers",
            f"expected less than the {n_blocks} blocks, found {n_predicting}",
        )
    n_embd = fields.integer("embedding_length")
    n_heads = _same_in_all_layers(fields, "attention.head_count", n_blocks)
    name = "attention.head_count_kv"
    if by_layer:
        n_kv_heads = fields.integers(name, n_blocks, PerLayer((n_heads,)))
    else:
        same = _same_in_all_layers(fields, name, n_blocks, n_heads, or_none=recurrent)
        n_kv_heads = PerLayer((same,))
    for n in n_kv_heads.values:
        if n_heads % n:
            raise fields.error(name, f"{n} does not divide {n_heads}")
    head_dim, in_window = _head_dims(fields, max(n_embd // n_heads, 1), latent, by_layer)
    if latent is not None and (n_kv_heads[0], head_dim) != (1, latent.values + latent.turned):
        raise fields.error(
            "attention.key_length",
            f"expected one key-value head of {latent.values} + {latent.turned}, found "
            f"{n_kv_heads[0]} of {head_dim}",
        )
    widest = max(head_dim, in_window)
    if (n_heads + 2 * max(n_kv_heads.values)) * widest >= 1 << 31:
        raise fields.error(
            "attention.head_count", f"{n_heads} heads of {widest} exceed the supported maximum"
        )
    if not fields.flag("attention.causal", True):
        raise fields.unsupported(
            "attention.causal", "false, but mmrt runs models whose tokens see only earlier ones"
        )
    rope = rope_from(fields, head_dim, longrope)
    scale = fields.number("attention.scale", 0.0, or_zero=True)
    context = fields.integer("context_length")
    if experts is None and fields.integer("expert_count", 0, least=0):
        raise fields.unsupported("expert_count", "mmrt knows no experts of this architecture")
    return Config(
        architecture=fields.prefix,
        context_length=context,
        context=context,
        n_layers=n_blocks - n_predicting,
        n_predicting=n_predicting,
        n_embd=n_embd,
        n_ff=fields.integers("feed_forward_length", n_blocks, least=0 if alone else 1),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        head_dim_in_window=in_window,
        norm_eps=fields.number(epsilon),
        rope=rope,
        rope_in_window=rope_in_window_from(fields, rope, in_window, window_base),
        attention_scale=scale or head_dim**-0.5,
        attention_softcap=fields.number("attn_logit_softcapping", 0.0, or_zero=True),
        logit_softcap=fields.number("final_logit_softcapping", 0.0, or_zero=True),
        window=_window(fields, n_blocks, window_pattern),
        experts=experts,
        latent=latent,
    )


def _head_dims(
    fields: Fields, default: int, latent: Latent | None, by_layer: bool
) -> tuple[int, int]:
    """Of layers that see all, and of those with a window."""
    dim = fields.integer("attention.key_length", default)
    in_window = fields.integer("attention.key_length_swa", dim)
    if in_window != dim and not by_layer:
        raise fields.error("attention.key_length_swa", f"differs from the key length, {dim}")
    for suffix, key in (("", dim), ("_swa", in_window)):
        name = f"attention.value_length{suffix}"
        expected = key if latent is None else latent.values
        if fields.integer(name, expected) != expected:
            what = "the key length" if latent is None else "what the latent row has"
            raise fields.error(name, f"differs from {what}, {expected}")
    return dim, in_window


def _same_in_all_layers(
    fields: Fields,
    name: str,
    n_layers: int,
    default: int | None = None,
    *,
    or_none: bool = False,
) -> int:
    """or_none: layers may have 0, but not all of them."""
    otherwise = None if default is None else PerLayer((default,))
    found = fields.integers(name, n_layers, otherwise, least=0 if or_none else 1)
    different = {each for each in found.values if each}
    if not different:
        raise fields.unsupported(name, "0 in all layers, but mmrt runs models with some attention")
    if len(different) > 1:
        raise fields.unsupported(
            name, f"{list(found.values)!s:.60}, but mmrt runs models whose layers have the same"
        )
    return different.pop()


def _window(fields: Fields, n_layers: int, default: int) -> SlidingWindow:
    name = "attention.sliding_window_pattern"
    pattern = (
        fields.flags(name, n_layers)
        if fields.is_array(name)
        else fields.integer(name, default, least=0)
    )
    return SlidingWindow(fields.integer("attention.sliding_window", 0, least=0), pattern)
