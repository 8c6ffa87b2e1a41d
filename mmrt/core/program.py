"""A forward pass as a list of operations: one method for each that a model can ask for."""

from collections.abc import Sequence

from mmrt.core._program import EXACT_TOKENS, CoreProgram, Matrix, Part
from mmrt.core.arguments import choice
from mmrt.core.kernels import Pool
from mmrt.core.state import StateStore
from mmrt.core.tensor import Tensor
from mmrt.errors import ArgumentError, FormatError

__all__ = ["ALIKE_TOKENS", "EXACT_TOKENS", "Matrix", "Part", "Program"]

# Steps of so many tokens or more round alike; shorter ones do not, unless the program is exact.
ALIKE_TOKENS = 8

SPARSE = "multiply what is not zero"  # what str() calls operations of this kind

_ACTIVATIONS = {"silu": 0, "gelu": 1, "relu2": 2, "clamped_silu": 3, "relu": 4}
_GATINGS = {"softmax": 0, "sigmoid": 1, "chosen": 2, "sqrt_softplus": 3}


class Program(CoreProgram):
    """Operations on numbered buffers, built once and run for each step of texts in `store`.

    A buffer holds `width` float32 values for each token of a step; the operations' methods take
    the numbers that buffer() and rope_table() returned, and weights as Tensors, whose pages are
    read in place. A model's file in mmrt/models makes these calls in the order of its forward
    pass. exact: what is computed for a token does not depend on the other tokens of its step. str()
    lists the operations with the tensors and bytes that each reads.
    """

    def __init__(self, pool: Pool, max_tokens: int, store: StateStore, exact: bool = False) -> None:
        self._widths: dict[int, int] = {}  # of buffers
        self._shared: dict[tuple[object, ...], int] = {}  # what a buffer is for -> its number

    def buffer(self, width: int, per_token: int = 1) -> int:
        """A new buffer, of per_token columns of `width` values a token; returns its number."""
        number = super().buffer(width, per_token)
        self._widths[number] = width
        return number

    def shared_buffer(self, purpose: str, width: int, per_token: int = 1) -> int:
        """A buffer that all layers use for this, one after another."""
        key = purpose, width, per_token
        if key not in self._shared:
            self._shared[key] = self.buffer(width, per_token)
        return self._shared[key]

    def embed(
        self,
        weight: Tensor,
        out: int,
        scale: float = 1.0,
        positions: Tensor | None = None,
        first: int = 0,
    ) -> None:
        """out = rows of `weight` (vocabulary, width) for the step's tokens, times `scale`, plus
        those of `positions` (rows, width) for theirs, if given: row `first` is that of position 0,
        and a text that is longer than these raises ArgumentError."""
        self.append("embed", "embed", [weight, positions], out=out, scale=scale, first=first)

    def take(self, out: int) -> None:
        """out = the hidden rows that run() is given, in place of embed(): for a program that begins
        amid a model. The first operation."""
        self.append("take", "take hidden rows", out=out)
        self.taken = self._widths[out]

    def norm(
        self,
        stream: int,
        weight: Tensor | Matrix,
        out: int,
        eps: float,
        add: int = -1,
        post: Tensor | None = None,
        scale: float = 1.0,
        gain: float = 1.0,
        centred: bool = False,
        outputs_only: bool = False,
    ) -> None:
        """As add(), if there is `add`; then out = RMS norm of stream * weight, or of the stream
        less its mean if `centred`, which makes it a LayerNorm. The bias of a Matrix is added."""
        fields = {"stream": stream, "in_": add, "out": out, "eps": eps, "scale": scale}
        fields["gain"] = gain
        note = "norm" if add < 0 else "add, norm"
        only = outputs_only
        self.append("norm", note, [weight, post], centred=centred, outputs_only=only, **fields)

    def add(
        self,
        stream: int,
        add: int = -1,
        eps: float = 0.0,
        post: Tensor | None = None,
        scale: float = 1.0,
        gain: float = 1.0,
        parts: int = 1,
        outputs_only: bool = False,
    ) -> None:
        """stream += add * scale, or its RMS norm times `post` (width,) * scale, if there is `add`;
        then stream *= gain; quantised matrices can read it then. parts: `post` (width // parts,)
        norms each of so many."""
        fields = {"stream": stream, "in_": add, "eps": eps, "scale": scale, "gain": gain}
        fields["n_groups"] = parts
        note = "round" if add < 0 else "add"
        self.append("norm", note, [None, post], outputs_only=outputs_only, **fields)

    def linear(
        self,
        in_: int,
        matrices: Sequence[Tensor | Matrix],
        out: int,
        outputs_only: bool = False,
        alike: bool = False,
    ) -> None:
        """out = the products of one to three matrices (Tensor or Matrix) with in_, side by side.

        alike: they are rounded alike however many tokens a step has, as a router's must be.
        """
        if not 1 <= len(matrices) <= 3:
            raise ArgumentError(f"linear: takes 1 to 3 matrices, not {len(matrices)}")
        fields = {"in_": in_, "out": out, "outputs_only": outputs_only, "alike": alike}
        self.append("linear", "multiply", matrices, **fields)

    def sparse(
        self,
        in_: int,
        matrix: Tensor | Matrix,
        out: int,
        columns: Tensor | None = None,
        outputs_only: bool = False,
    ) -> None:
        """As linear() of one matrix (rows, width), where most of in_ is zero. columns (width, at
        least rows), of the matrix's type: its transpose, of which a step of one token multiplies
        only what meets no zero, with the same result to the bit."""
        fields = {"in_": in_, "out": out, "outputs_only": outputs_only}
        self.append("sparse", SPARSE, [matrix, columns], **fields)

    def unit(
        self,
        in_: int,
        matrix: Tensor | Matrix,
        out: int,
        activation: str,
        outputs_only: bool = False,
        times: int = -1,
        first: int = 0,
        alike: bool = False,
    ) -> None:
        """out = activation(matrix @ in_), of a Tensor or Matrix; activation: as glu()'s. times: a
        buffer whose values, from `first` on, this is multiplied by, if given. alike: as
        linear()'s."""
        fields = {"in_": in_, "out": out, "outputs_only": outputs_only, "alike": alike}
        fields |= {"activation": _activation(activation), "stream": times, "first": first}
        self.append("unit", f"multiply, {activation}", [matrix], **fields)

    def predicted(
        self,
        in_: int,
        marks: int,
        gate: Tensor | Matrix | None,
        up: Tensor | Matrix,
        out: int,
        activation: str,
        outputs_only: bool = False,
        threshold: float = 0.0,
        columns: Tensor | None = None,
    ) -> None:
        """As glu(), or without a gate as unit(), of the units whose element in the buffer `marks`,
        none of which is negative, is above zero; others are zero, whatever they would have been.
        columns: as sparse()'s for what reads `out`, with the rows of `up`, then of `gate`, after
        them: within a budget a step of one token reads these units from there."""
        fields = {"in_": in_, "stream": marks, "out": out, "outputs_only": outputs_only}
        fields["activation"] = _activation(activation)
        matrices = [up, None, columns] if gate is None else [gate, up, columns]
        note = f"{activation}, of what is predicted"
        self.append("predicted", note, matrices, threshold=threshold, **fields)

    def glu(
        self,
        in_: int,
        gate: Tensor | Matrix,
        up: Tensor | Matrix,
        out: int,
        activation: str,
        outputs_only: bool = False,
        threshold: float = 0.0,
        columns: Tensor | None = None,
    ) -> None:
        """out = activation(gate @ in_) * (up @ in_), each a Tensor or Matrix.

        activation is "silu", "gelu" (with tanh), "relu", "relu2" (x^2 where x > 0, else 0) or
        "clamped_silu": x / (1 + exp(-1.702 x)) of x up to 7, times `up` from -7 to 7 and one more.
        threshold: if above zero, gates up to it count as zero. With "relu" and "relu2", steps of a
        few tokens do not multiply the rows of `up` whose gates are zero: the result is the same,
        but NaN in such a row is not noticed. columns: as sparse()'s for what reads `out`, with the
        rows of `up` after them, which within a budget a step of one token reads from there.
        """
        fields = {"in_": in_, "out": out, "outputs_only": outputs_only}
        fields["activation"] = _activation(activation)
        note = f"{activation}-gated multiply"
        if columns is None:
            self.append("glu", note, [gate, up], threshold=threshold, **fields)
            return
        fields["stream"] = self.shared_buffer("gates", self._widths[out])
        self.append("glu", note, [gate, up, columns], threshold=threshold, **fields)
        self.append("ups", "multiply rows on demand", [columns, up], **fields)

    def route(
        self,
        logits: int,
        choices: int,
        n_used: int,
        gating: str = "softmax",
        bias: Tensor | None = None,
        normalised: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        n_groups_used: int = 1,
        outputs_only: bool = False,
    ) -> None:
        """choices = for each token its n_used best experts by `logits`, and their weights.

        choices is a buffer of 2 * n_used values: the experts' numbers, the best first, then their
        weights. gating: "softmax" over all experts, "sigmoid" or "sqrt_softplus" of each logit, or
        softmax over the "chosen" ones. bias (experts,) is added for choosing alone. normalised: the
        weights add up to 1, and then are multiplied by `scale`. Experts are chosen from the best
        n_groups_used of n_groups groups, by the sums of the two best of each.
        """
        self.append(
            "route",
            f"choose {n_used} experts",
            [bias],
            in_=logits,
            out=choices,
            n_used=n_used,
            gating=_GATINGS[choice("gating", gating, _GATINGS)],
            normalised=normalised,
            scale=scale,
            n_groups=n_groups,
            n_groups_used=n_groups_used,
            outputs_only=outputs_only,
        )

    def experts(
        self,
        in_: int,
        choices: int,
        out: int,
        n_used: int,
        gate: Tensor | Matrix,
        up: Tensor | Matrix | None,
        down: Tensor | Matrix,
        activation: str,
        outputs_only: bool = False,
        plain: bool = False,
    ) -> None:
        """out = the sum of what the chosen experts give for in_, times their weights.

        Each is down @ (activation(gate @ x) * (up @ x)); gate, up and down are stacks, Tensors or
        Matrices of shape (experts, rows, width). up None: each matrix of gate has the rows of up
        after its own; or, if `plain`, each expert is down @ activation(gate @ x).
        """
        gates = [gate] if up is None else [gate, up]
        fused = up is None and not plain
        stacks = [m.weight if isinstance(m, Matrix) else m for m in (*gates, down)]
        for stack in stacks:
            if len(stack.shape) < 3:
                raise FormatError(
                    f"tensor {stack.name}: shape {stack.shape} is no stack of matrices"
                )
        sorted_in = self.shared_buffer("experts' input", self._widths[in_], n_used)
        hidden = self.shared_buffer("experts' units", stacks[0].shape[1] // (1 + fused), n_used)
        results = self.shared_buffer("experts' results", self._widths[out], n_used)
        of = {"choices": choices, "n_used": n_used, "outputs_only": outputs_only}
        self.append("dispatch", "sort by expert", in_=in_, out=sorted_in, **of)
        units = {"in_": in_, "stream": sorted_in, "out": hidden}
        units |= {"activation": _activation(activation), "plain": plain}
        note = f"{activation} experts" if plain else f"{activation}-gated experts"
        self.append("expert_glu", note, gates, **units, **of)
        self.append("expert_down", "experts", [down], in_=hidden, out=results, **of)
        self.append("combine", "add experts", in_=results, out=out, **of)

    def gate(self, in_: int, weight: Tensor, out: int, outputs_only: bool = False) -> None:
        """out *= the sigmoid of weight (width,) @ in_."""
        self.append("gate", "gate", [weight], in_=in_, out=out, outputs_only=outputs_only)

    def wide_norm(
        self, qkv: int, layer: int, n_heads: int, q_norm: Tensor, k_norm: Tensor, eps: float
    ) -> None:
        """Norms all queries of a token together (n_heads * head_dim,), and all its keys, in
        place."""
        fields = {"in_": qkv, "out": qkv, "layer": layer, "n_heads": n_heads, "eps": eps}
        self.append("wide_norm", "norm queries and keys", [q_norm, k_norm], **fields)

    def _with_room(self, buffer: int, layer: int, n_heads: int, lacks: bool = False) -> int:
        """The buffer for these heads as attention wants them: another if groups are not whole, or
        it lacks some of them."""
        head_dim, room = self.store.layer(layer).head_dim, self.store.head_room(layer)
        if n_heads < 1 or (room == head_dim and not lacks):  # the former is refused
            return buffer
        return self.shared_buffer(f"heads of {buffer}", n_heads * room)

    def _heads_with_room(self, qkv: int, layer: int, n_heads: int) -> int:
        """The same for `n_heads` query heads with the layer's own heads of keys and of values."""
        n_kv, head_dim, *_, of_layer = self.store.layer(layer)
        if of_layer is not None:
            return self._with_room(qkv, layer, n_heads)
        lacks_values = self._widths.get(qkv) == (n_heads + n_kv) * head_dim
        return self._with_room(qkv, layer, n_heads + 2 * n_kv, lacks_values)

    def rope(
        self,
        qkv: int,
        table: int,
        layer: int,
        n_heads: int,
        interleaved: bool,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 0.0,
        temperature: float = 0.0,
        period: int = 0,
        normed_values: bool = False,
        outputs_only: bool = False,
    ) -> None:
        """Norms (head_dim,) and rotates the queries and keys of qkv; stores keys, values.

        qkv holds n_heads query heads, then key heads, then value heads; without value heads, keys
        as they come are values too; of a layer that reads another's keys, query heads alone.
        interleaved: pairs are neighbours; otherwise the first half of a head with its second. table
        -1: no rotation. temperature: if not 0, queries are multiplied by
        1 + temperature * ln(1 + position // period). normed_values: RMS norms of these, without
        a weight. outputs_only: possible without keys.
        """
        does = ["rotate"] if table >= 0 else []
        if self.store.layer(layer).of_layer is None:
            does.append("store keys and values")
        self.append(
            "rope",
            ", ".join(does or ["norm queries"]),
            [q_norm, k_norm],
            in_=qkv,
            out=self._heads_with_room(qkv, layer, n_heads),
            rope=table,
            layer=layer,
            n_heads=n_heads,
            interleaved=interleaved,
            eps=eps,
            temperature=temperature,
            period=period,
            normed_values=normed_values,
            outputs_only=outputs_only,
        )

    def latent_attention(
        self,
        queries: int,
        row: int,
        out: int,
        layer: int,
        n_heads: int,
        table: int,
        interleaved: bool,
        norm: Tensor,
        to_keys: Tensor | Matrix,
        from_values: Tensor | Matrix,
        eps: float,
        scale: float,
        outputs_only: bool = False,
    ) -> None:
        """out = latent attention (DeepSeek-AI 2024, arXiv:2405.04434) over a layer whose keys have
        values in them: each token's `row` is all that is kept of it, for all heads.

        row = its values, which are normed by `norm` (values,), and then the elements that `table`
        rotates. queries holds n_heads heads, each with the elements for values before those that
        are rotated; to_keys (n_heads, values, elements before) makes of the former what keys are
        multiplied with. from_values (n_heads, head_dim, values) makes of each head's result its
        part of `out`, which quantised matrices can read.
        """
        only = outputs_only
        store, keeps = self.store, self.store.layer(layer)
        values, room = keeps.values_in_keys, store.head_room(layer)
        to_keys, before = _one_below_the_other(to_keys, n_heads)
        from_values, _ = _one_below_the_other(from_values, n_heads)
        parts = self.shared_buffer("parts of queries", before, n_heads)
        heads = self.shared_buffer("latent heads", (n_heads + 1) * room)
        found = self.shared_buffer("latent results", n_heads * values)
        spread = self.shared_buffer("latent results, spread", values, n_heads)
        of = {"layer": layer, "n_heads": n_heads}
        self.append("spread", "spread heads", in_=queries, out=parts, n_heads=n_heads)
        fields: dict[str, float] = {"in_": parts, "out": heads, "n_heads": n_heads, "apart": room}
        self.append("head_linear", "multiply heads", [to_keys], **fields)
        fields = {"in_": queries, "stream": row, "out": heads, "rope": table, "eps": eps}
        fields["interleaved"] = interleaved
        self.append("latent", "rotate, store keys with values", [norm], **fields, **of)
        window = f", window {keeps.window}" if keeps.window else ""
        fields = {"in_": heads, "out": found, "scale": scale, "outputs_only": only}
        self.append("attend", f"attend{window}", [None], **fields, **of)
        fields = {"in_": found, "out": spread, "n_heads": n_heads, "outputs_only": only}
        self.append("spread", "spread heads", **fields)
        fields = {"in_": spread, "out": out, "n_heads": n_heads, "outputs_only": only}
        fields["apart"] = self._widths[out] // n_heads
        self.append("head_linear", "multiply heads", [from_values], **fields)
        self.add(out, outputs_only=only)

    def attend(
        self,
        qkv: int,
        out: int,
        layer: int,
        n_heads: int,
        scale: float,
        softcap: float = 0.0,
        sinks: Tensor | None = None,
        outputs_only: bool = False,
    ) -> None:
        """out = softmax(scale * q k) v over the keys that the layer sees. sinks (n_heads,): scores
        that each head's softmax has beside them, without a value."""
        window = self.store.layer(layer).window
        heads = self._with_room(out, layer, n_heads)
        of = {"layer": layer, "n_heads": n_heads, "outputs_only": outputs_only}
        self.append(
            "attend",
            f"attend, window {window}" if window else "attend",
            [sinks],
            in_=self._heads_with_room(qkv, layer, n_heads),
            out=heads,
            scale=scale,
            softcap=softcap,
            **of,
        )
        if self.store.heads_are_apart(layer):
            self.append("join", "join heads", in_=heads, out=out, **of)

    def conv(
        self,
        in_: int,
        weight: Tensor | Matrix,
        out: int,
        layer: int,
        *,
        gated: bool = False,
        first: int = 0,
    ) -> None:
        """out = silu(the causal convolution of in_, from element `first` of each token on, with
        `weight` (channels, taps)), of which the last tap is for a token itself; before SiLU, the
        bias of a Matrix is added. The layer's Block keeps what the next tokens need: (taps - 1) *
        channels floats.

        gated: in_ holds before, after and x (channels,) of each token; out = after * the
        convolution of before * x.
        """
        fields = {"in_": in_, "out": out, "layer": layer, "gated": gated, "first": first}
        self.append("conv", "convolve", [weight], **fields)

    def delta(
        self,
        in_: int,
        gates: int,
        out: int,
        layer: int,
        n_heads: int,
        decay_bias: Tensor,
        decay_factor: Tensor,
        norm: Tensor,
        eps: float,
        first: int = 0,
        grouped: bool = False,
    ) -> None:
        """The gated delta rule for n_heads heads of values, of `dim` elements each: out = silu(z) *
        the RMS norm, by `norm` (dim,), of what they give.

        in_ holds heads of queries, as many of keys, and those of values. gates holds z (n_heads *
        dim,), then for each head a and b, all a first: its matrix decays by e^(decay_factor *
        softplus(a + decay_bias)), each (n_heads,), and sigmoid(b) is written. Head h of values
        shares keys with those that are as many further on as there are heads of keys. grouped: it
        shares them with its neighbours; gates then hold for each head of keys b of all of these,
        and a of all. The layer's Block keeps (n_heads, dim, dim) floats after `first` others.
        """
        self.append(
            "delta",
            "gated delta rule",
            [decay_bias, decay_factor, norm],
            in_=in_,
            stream=gates,
            out=out,
            layer=layer,
            n_heads=n_heads,
            eps=eps,
            first=first,
            grouped=grouped,
        )

    def scan(
        self,
        in_: int,
        gates: int,
        out: int,
        layer: int,
        n_heads: int,
        n_groups: int,
        step_bias: Tensor,
        decay_factor: Tensor,
        skip: Tensor,
        first: int = 0,
    ) -> None:
        """Selective state spaces (Dao and Gu 2024, arXiv:2405.21060) for n_heads heads of `dim`
        elements each: out = silu(z) * what they give.

        in_ holds the heads, then b (states,) of each of n_groups groups of neighbouring heads, then
        c likewise. gates holds z (n_heads * dim,), then what in_ was made of, as many elements,
        then dt of each head. Its matrix decays by e^(decay_factor * d), where d is softplus(dt +
        step_bias), and b (d x)^T is added; it gives c times the matrix, and skip * x. These three
        are vectors (n_heads,). The layer's Block keeps (n_heads, states, dim) floats after `first`
        others.
        """
        self.append(
            "scan",
            "scan state spaces",
            [step_bias, decay_factor, skip],
            in_=in_,
            stream=gates,
            out=out,
            layer=layer,
            n_heads=n_heads,
            n_groups=n_groups,
            first=first,
        )

    def group_norm(self, buffer: int, weight: Tensor, n_groups: int, eps: float) -> None:
        """Norms each of n_groups equal parts of the buffer by its part of `weight` (width,), in
        place; quantised matrices can read it then."""
        fields = {"in_": buffer, "out": buffer, "n_groups": n_groups, "eps": eps}
        self.append("group_norm", "norm groups", [weight], **fields)

    def split(self, in_: int, out: int, layer: int, n_heads: int) -> None:
        """out = heads of queries, keys and values as rope() reads them, of in_, where a gate
        (head_dim,) lies behind each query."""
        self.append("split", "split off gates", in_=in_, out=out, layer=layer, n_heads=n_heads)

    def head_gate(self, in_: int, out: int, n_heads: int, outputs_only: bool = False) -> None:
        """out (heads) *= the sigmoids of the gates that lie in in_ as split() says."""
        fields = {"in_": in_, "out": out, "n_heads": n_heads, "outputs_only": outputs_only}
        self.append("head_gate", "gate heads", **fields)

    def logits(
        self, in_: int, matrix: Tensor | Matrix, softcap: float = 0.0, scale: float = 1.0
    ) -> None:
        """The step's result: matrix (vocabulary, width) @ in_ * scale, capped softly where
        softcap > 0."""
        fields = {"in_": in_, "softcap": softcap, "scale": scale, "outputs_only": True}
        self.append("logits", "logits", [matrix], **fields)
        weight = matrix.weight if isinstance(matrix, Matrix) else matrix
        self.vocab_size = weight.shape[0] if len(weight.shape) == 2 else 1

    def give(self, in_: int) -> None:
        """The step's result, in place of logits(): rows of a buffer, of all tokens, for a program
        that ends amid a model. Several buffers are given side by side."""
        self.append("give", "give hidden rows", in_=in_)
        self.given += self._widths[in_]


def _one_below_the_other(matrices: Tensor | Matrix, n: int) -> tuple[Matrix, int]:
    """A stack of n matrices as one with all of their rows; and their width."""
    stack, bias, scale = matrices if isinstance(matrices, Matrix) else Matrix(matrices)
    if len(stack.shape) != 3 or stack.shape[0] != n:
        raise FormatError(f"tensor {stack.name}: shape {stack.shape} is no stack of {n} matrices")
    if bias is not None:
        raise FormatError(f"tensor {bias.name}: no bias is known for matrices of heads")
    shape = (n * stack.shape[1], stack.shape[2])
    flat = Tensor(stack.mapping, stack.name, stack.type, shape, stack.offset)
    return Matrix(flat, bias, scale), shape[1]


def _activation(name: str) -> int:
    return _ACTIVATIONS[choice("activation", name, _ACTIVATIONS)]
