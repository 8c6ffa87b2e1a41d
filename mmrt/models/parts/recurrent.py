"""Recurrent layers, which keep a block of fixed size in place of keys and values."""

from dataclasses import dataclass

from mmrt.models.parts.fields import Fields, PerLayer

_MOST_FLOATS = (1 << 31) - 1  # that a layer keeps


@dataclass(frozen=True)
class Recurrent:
    layers: tuple[bool, ...]  # which are
    taps: int  # of their convolutions: inputs that one output is made of
    n_floats: int  # that each keeps


def layers_without_heads(heads: PerLayer, n_layers: int) -> tuple[bool, ...]:
    """Which layers have no heads of keys and values."""
    return tuple(heads[layer] == 0 for layer in range(n_layers))


def short_convolutions(fields: Fields, n_layers: int) -> Recurrent:
    """As LFM2 has them: in layers without heads of keys, with as many channels as the stream."""
    taps = fields.integer("shortconv.l_cache", least=2)
    heads = fields.integers("attention.head_count_kv", n_layers, least=0)
    n_floats = (taps - 1) * fields.integer("embedding_length")
    if n_floats > _MOST_FLOATS:
        raise fields.error("shortconv.l_cache", f"{taps} exceeds the supported maximum")
    return Recurrent(layers_without_heads(heads, n_layers), taps, n_floats)


@dataclass(frozen=True)
class DeltaNet(Recurrent):
    """Gated delta nets: see Program.delta()."""

    n_key_heads: int
    n_value_heads: int
    head_dim: int
    grouped: bool

    @property
    def channels(self) -> int:
        """Of its convolution: queries, keys and values."""
        return (2 * self.n_key_heads + self.n_value_heads) * self.head_dim


_INTERVAL = 4  # every fourth layer attends, where the file does not say


def delta_net(fields: Fields, n_layers: int, *, grouped: bool) -> DeltaNet:
    """As Qwen3-Next has them. grouped: heads of values that share a key are neighbours."""
    name = "attention.recurrent_layers"
    if fields.is_array(name):
        layers = fields.flags(name, n_layers)
    else:
        interval = fields.integer("full_attention_interval", _INTERVAL)
        layers = tuple((layer + 1) % interval != 0 for layer in range(n_layers))
    taps = fields.integer("ssm.conv_kernel", least=2)
    dim = fields.integer("ssm.state_size")
    n_keys, n_values = (fields.integer(f"ssm.{n}") for n in ("group_count", "time_step_rank"))
    if n_values % n_keys:
        raise fields.error("ssm.time_step_rank", f"{n_keys} does not divide {n_values}")
    inner = fields.integer("ssm.inner_size")
    if inner != n_values * dim:
        raise fields.error("ssm.inner_size", f"expected {n_values} heads of {dim}, found {inner}")
    channels = (2 * n_keys + n_values) * dim
    n_floats = (taps - 1) * channels + n_values * dim * dim
    if n_floats > _MOST_FLOATS:
        raise fields.error("ssm.inner_size", f"{inner} exceeds the supported maximum")
    return DeltaNet(layers, taps, n_floats, n_keys, n_values, dim, grouped)


@dataclass(frozen=True)
class StateSpaces(Recurrent):
    """Mamba 2's: see Program.scan()."""

    n_heads: int
    head_dim: int
    n_groups: int
    n_states: int

    @property
    def inner(self) -> int:
        """Elements of all heads."""
        return self.n_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of its convolution: heads, and what each group writes and reads by."""
        return self.inner + 2 * self.n_groups * self.n_states


def state_spaces(fields: Fields, layers: tuple[bool, ...]) -> StateSpaces:
    """As Mamba 2 has them (Dao and Gu 2024, arXiv:2405.21060), in these layers."""
    taps = fields.integer("ssm.conv_kernel", least=2)
    n_states, n_groups, n_heads, inner = (
        fields.integer(f"ssm.{name}")
        for name in ("state_size", "group_count", "time_step_rank", "inner_size")
    )
    if inner % n_heads:
        raise fields.error("ssm.inner_size", f"{n_heads} heads do not divide {inner}")
    if n_heads % n_groups:
        raise fields.error("ssm.group_count", f"{n_groups} does not divide {n_heads} heads")
    if inner // n_heads % 32:
        raise fields.unsupported(
            "ssm.inner_size",
            f"{n_heads} heads of {inner // n_heads}, but mmrt runs those of multiples of 32",
        )
    channels = inner + 2 * n_groups * n_states
    n_floats = (taps - 1) * channels + n_states * inner
    if n_floats > _MOST_FLOATS:
        raise fields.error("ssm.inner_size", f"{inner} exceeds the supported maximum")
    heads = n_heads, inner // n_heads
    return StateSpaces(layers, taps, n_floats, *heads, n_groups, n_states)
