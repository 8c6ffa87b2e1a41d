"""The parts that transformers are made of, written into a program one after another."""

from collections.abc import Iterator

from mmrt.core.program import Matrix, Program
from mmrt.core.tensor import Tensor
from mmrt.errors import FormatError
from mmrt.models.parts.activation import HAVE_ZEROS
from mmrt.models.parts.config import Config
from mmrt.models.parts.experts import Experts
from mmrt.models.parts.recurrent import DeltaNet, StateSpaces
from mmrt.models.parts.rope import Rope, divisors_from
from mmrt.models.parts.weights import Layer, Weights, require_rows, require_taps


class Transformer:
    """A forward pass in the making: each method appends operations to `program`.

    A stream runs through all layers. Parts read it, or what the latest norm() made of it:
    attention(), gated_unit() and plain_unit() leave a change, which norm() or add() after them adds
    to the stream. FormatError names a tensor that is missing or unfit.
    """

    def __init__(self, program: Program, config: Config, weights: Weights) -> None:
        self._program = program
        self._config = config
        self._weights = weights
        c = config
        self._stream, self._change = program.buffer(c.n_embd), program.buffer(c.n_embd)
        self._normed = program.buffer(c.n_embd)
        self._input = self._stream  # of the next part
        self._hidden: dict[int, int] = {}  # width -> buffer
        self._tables: dict[tuple[Rope, str], int] = {}  # rotation, its divisors -> table
        self._router: tuple[int, int] | None = None  # buffers: its logits, the experts chosen
        self._changed = False
        self._post: Tensor | None = None
        self._beside = -1  # buffer: what layers have of tokens beside the stream
        self._gain = 1.0  # of the stream, after the latest change
        self._outputs_only = False  # what follows works only on tokens whose logits are wanted

    def layers(self) -> Iterator[Layer]:
        """Those that the program has."""
        return (self._weights.layer(i) for i in self._config.layers)

    def embed(
        self, scale: float = 1.0, *, normed: bool = True, first_position: int | None = None
    ) -> None:
        """The stream begins with the tokens' embeddings times `scale`. normed: a norm comes before
        the first part reads it. first_position: positions have embeddings too, which are added;
        that of position 0 comes after so many rows. Where the program's layers begin later than the
        model's, the stream is what those before them have given."""
        if self._config.layers.start:
            self._program.take(self._stream)
        elif first_position is None:
            self._program.embed(self._weights["token_embd.weight"], self._stream, scale)
        else:
            positions = self._weights["position_embd.weight"]
            require_rows(positions, self._config.context_length + first_position)
            embedding = self._weights["token_embd.weight"]
            self._program.embed(embedding, self._stream, scale, positions, first_position)
        if not normed:
            self._program.add(self._stream)

    def embed_in_layers(self) -> None:
        """What each layer has of each token beside the stream: rows of a table, to which products
        of the stream, which has just begun, are added when they are normed for each layer."""
        c, program, width = self._config, self._program, self._config.layer_embedding
        both = c.n_layers * width
        made = program.shared_buffer("products for layers", both)
        self._beside = program.shared_buffer("embeddings in layers", both)
        table = self._weights["per_layer_token_embd.weight"]
        program.embed(table, self._beside, (width / 2) ** 0.5)
        program.add(self._stream)
        weight, bias, scale = self._weights.matrix("per_layer_model_proj")
        program.linear(self._stream, [Matrix(weight, bias, scale * c.n_embd**-0.5)], made)
        norm = self._weights["per_layer_proj_norm.weight"]
        program.add(self._beside, made, c.norm_eps, norm, 0.5**0.5, parts=c.n_layers)

    def norm(self, weight: Tensor, *, bias: Tensor | None = None, centred: bool = False) -> None:
        """Adds the latest change, if there is one, to the stream, which is then normed for the
        next part. bias: added to that. centred: by a LayerNorm, not an RMS norm."""
        self._program.norm(
            self._stream,
            Matrix(weight, bias),
            self._normed,
            self._config.norm_eps,
            add=self._change if self._changed else -1,
            post=self._post,
            scale=self._config.residual_scale,
            gain=self._gain,
            centred=centred,
            outputs_only=self._outputs_only,
        )
        self._input = self._normed
        self._changed, self._post, self._gain = False, None, 1.0

    def add(self) -> None:
        """Adds the latest change to the stream. The next part reads what this one has read: the
        stream, where there was no norm yet."""
        self._program.add(
            self._stream,
            self._change,
            self._config.norm_eps,
            post=self._post,
            scale=self._config.residual_scale,
            gain=self._gain,
            outputs_only=self._outputs_only,
        )
        self._changed, self._post, self._gain = False, None, 1.0

    def multiply(self, gain: float) -> None:
        """The stream, when the latest change has been added to it."""
        self._gain *= gain

    def divisors(self, layer: Layer) -> Tensor | None:
        """The model's own divisors of rotations: the layer's, or else those of all layers."""
        shared, own = self._weights.get("rope_freqs.weight"), layer.get("rope_freqs")
        return shared if own is None else own

    def divisors_by_context(self) -> Tensor | None:
        """Of the model's two tables of divisors (LongRoPE, Ding et al. 2024, arXiv:2402.13753) the
        one for the context that sequences may have. None if it has none, which only the field
        rope.scaling.type may forbid."""
        rope, names = self._config.rope, ("rope_factors_short.weight", "rope_factors_long.weight")
        if rope.scaling != "longrope" and not any(self._weights.has(name) for name in names):
            return None
        short, long = (self._weights[name] for name in names)
        divisors_from(short, rope.n_dims)  # both are sound, whichever is used
        return long if self._config.context > rope.original_context else short

    def attention(
        self,
        layer: Layer,
        *,
        interleaved: bool,
        rotates: bool = True,
        divisors: Tensor | None = None,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        wide_norms: bool = False,
        sinks: Tensor | None = None,
        post: Tensor | None = None,
        gated: bool = False,
        keys_are_values: bool = False,
        normed_values: bool = False,
    ) -> None:
        """Attention within the layer's window, with queries and keys that its Rope turns, if
        `rotates`.

        interleaved: pairs are neighbours, not elements of the two halves of a head. divisors: the
        model's own, of the rotations. q_norm, k_norm: norms of each query and key (head_dim,), or
        if wide_norms of all of a token's together (heads * head_dim,). sinks (heads,): each takes
        its share of a head's attention. post (n_embd,): the norm of what is added to the stream.
        gated: behind the rows of each query are those of a gate, whose sigmoid the result is
        multiplied by. keys_are_values: before their norm and rotation. normed_values: by a norm
        without a weight. A layer that shares another's keys and values has queries alone.
        """
        c, program = self._config, self._program
        dim, shares = c.head_dim_of(layer.index), c.keys_of(layer.index) != layer.index
        q, kv = c.n_heads * dim, c.n_kv_heads[layer.index] * dim
        rows = {"attn_q": q + q * gated}
        if not shares:
            rows["attn_k"] = kv
        if not shares and not keys_are_values:
            rows["attn_v"] = kv
        if layer.get("attn_qkv") is not None:  # the three matrices, one below the other
            matrices = [layer.matrix("attn_qkv", sum(rows.values()))]
        else:
            matrices = [layer.matrix(name, n) for name, n in rows.items()]
        # Of a layer that shares, none reads what comes of the other tokens.
        only = self._outputs_only
        qkv = program.shared_buffer("heads", sum(rows.values()) - q * gated)
        with_gates = self._hidden_of(2 * (q + kv)) if gated else qkv
        program.linear(self._input, matrices, with_gates, outputs_only=only)
        if gated:
            program.split(with_gates, qkv, layer.index, c.n_heads)
        if wide_norms and q_norm is not None and k_norm is not None:
            program.wide_norm(qkv, layer.index, c.n_heads, q_norm, k_norm, c.norm_eps)
            q_norm = k_norm = None
        # Only now is there a table for the width of a head: matrices of such rows are in the file.
        table = self._table(c.rope_of(layer.index), divisors) if rotates else -1
        program.rope(
            qkv,
            table,
            layer.index,
            c.n_heads,
            interleaved=interleaved,
            q_norm=q_norm,
            k_norm=k_norm,
            eps=c.norm_eps,
            temperature=c.temperature,
            period=c.temperature_period,
            normed_values=normed_values,
            outputs_only=only,
        )
        self._after_keeping(layer)
        heads = program.shared_buffer("results", q)
        program.attend(
            qkv,
            heads,
            layer.index,
            c.n_heads,
            c.attention_scale,
            softcap=c.attention_softcap,
            sinks=sinks,
            outputs_only=self._outputs_only,
        )
        if gated:
            program.head_gate(with_gates, heads, c.n_heads, self._outputs_only)
        output = layer.matrix("attn_output")
        program.linear(heads, [output], self._change, outputs_only=self._outputs_only)
        self._changed, self._post = True, post

    def latent_attention(self, layer: Layer, *, interleaved: bool) -> None:
        """Attention over one row of each token, which all heads share: see Config.latent. Queries
        are made in two steps, with a norm between, where the file has matrices for these."""
        c, program = self._config, self._program
        assert c.latent is not None
        width, result = c.n_heads * c.latent.head_dim, c.n_heads * c.latent.result
        queries, read = program.shared_buffer("queries", width), self._input
        if layer.get("attn_q_a") is not None:
            first = layer.matrix("attn_q_a")
            rank = first.weight.shape[0]
            inner, read = (
                program.shared_buffer("inner", rank),
                program.shared_buffer("normed inner", rank),
            )
            program.linear(self._input, [first], inner)
            program.norm(inner, layer["attn_q_a_norm"], read, c.norm_eps)
            program.linear(read, [layer.matrix("attn_q_b", width)], queries)
        else:
            program.linear(read, [layer.matrix("attn_q", width)], queries)
        row = program.shared_buffer("latent row", c.head_dim)
        program.linear(self._input, [layer.matrix("attn_kv_a_mqa", c.head_dim)], row)
        self._after_keeping(layer)
        to_keys, before = layer.matrix("attn_k_b", c.latent.values), c.latent.head_dim
        before -= c.latent.turned
        name, found = to_keys.weight.name, to_keys.weight.shape[-1]
        if found != before:
            raise FormatError(f"tensor {name}: rows of {found}, expected {before}")
        heads = program.shared_buffer("results", result)
        program.latent_attention(
            queries,
            row,
            heads,
            layer.index,
            c.n_heads,
            self._table(c.rope_of(layer.index), None),
            interleaved,
            layer["attn_kv_a_norm"],
            to_keys,
            layer.matrix("attn_v_b", c.latent.result),
            c.norm_eps,
            c.attention_scale,
            outputs_only=self._outputs_only,
        )
        output = layer.matrix("attn_output")
        program.linear(heads, [output], self._change, outputs_only=self._outputs_only)
        self._changed, self._post = True, None

    def _table(self, rope: Rope, divisors: Tensor | None) -> int:
        key = (rope, divisors.name if divisors is not None else "")
        if key not in self._tables:
            own = None if divisors is None else divisors_from(divisors, rope.n_dims)
            self._tables[key] = self._program.rope_table(rope.frequencies(own), rope.magnitude)
        return self._tables[key]

    def short_convolution(self, layer: Layer, taps: int) -> None:
        """A convolution over the latest `taps` tokens, gated before and after, in place of
        attention."""
        width, program = self._config.n_embd, self._program
        inputs, outputs = self._hidden_of(3 * width), self._hidden_of(width)
        kernel = layer["shortconv.conv"]
        require_taps(kernel, width, taps)
        program.linear(self._input, [layer.matrix("shortconv.in_proj", 3 * width)], inputs)
        program.conv(inputs, kernel, outputs, layer.index, gated=True)
        self._after_recurrence(layer, outputs, "shortconv.out_proj")

    def delta_net(self, layer: Layer, net: DeltaNet) -> None:
        """The gated delta rule in place of attention; see Program.delta()."""
        program, values = self._program, net.n_value_heads * net.head_dim
        inputs = program.shared_buffer("delta rule", net.channels)
        convolved = program.shared_buffer("delta rule, convolved", net.channels)
        gates = program.shared_buffer("gates of the delta rule", values + 2 * net.n_value_heads)
        outputs = self._hidden_of(values)
        kernel = layer["ssm_conv1d"]
        require_taps(kernel, net.channels, net.taps)
        program.linear(self._input, [layer.matrix("attn_qkv", net.channels)], inputs)
        program.conv(inputs, kernel, convolved, layer.index)
        if net.grouped:
            others = [layer.matrix("ssm_ba", 2 * net.n_value_heads)]
        else:
            others = [layer.matrix(f"ssm_{name}", net.n_value_heads) for name in ("alpha", "beta")]
        program.linear(self._input, [layer.matrix("attn_gate", values), *others], gates)
        program.delta(
            convolved,
            gates,
            outputs,
            layer.index,
            net.n_value_heads,
            layer.needed("ssm_dt.bias"),
            layer.needed("ssm_a"),
            layer["ssm_norm"],
            self._config.norm_eps,
            first=(net.taps - 1) * net.channels,
            grouped=net.grouped,
        )
        self._after_recurrence(layer, outputs, "ssm_out")

    def state_spaces(self, layer: Layer, spaces: StateSpaces) -> None:
        """Selective state spaces in place of attention, gated, and then normed in groups."""
        program, n_heads, inner, channels = (
            self._program,
            spaces.n_heads,
            spaces.inner,
            spaces.channels,
        )
        inputs = program.shared_buffer("state spaces", inner + channels + n_heads)
        convolved = program.shared_buffer("state spaces, convolved", channels)
        outputs = self._hidden_of(inner)
        kernel = layer["ssm_conv1d"]
        require_taps(kernel, channels, spaces.taps)
        into = layer.matrix("ssm_in", inner + channels + n_heads)
        program.linear(self._input, [into], inputs)
        bias = layer.beside("ssm_conv1d.bias")
        program.conv(inputs, Matrix(kernel, bias), convolved, layer.index, first=inner)
        program.scan(
            convolved,
            inputs,
            outputs,
            layer.index,
            n_heads,
            spaces.n_groups,
            layer.needed("ssm_dt.bias"),
            layer.flat("ssm_a", n_heads, 1),
            layer.flat("ssm_d", n_heads, 1),
            first=(spaces.taps - 1) * channels,
        )
        norm = layer.flat("ssm_norm.weight", spaces.n_groups, inner // spaces.n_groups)
        program.group_norm(outputs, norm, spaces.n_groups, self._config.norm_eps)
        self._after_recurrence(layer, outputs, "ssm_out")

    def _after_recurrence(self, layer: Layer, outputs: int, name: str) -> None:
        self._after_keeping(layer)
        only = self._outputs_only
        self._program.linear(outputs, [layer.matrix(name)], self._change, outputs_only=only)
        self._changed, self._post = True, None

    def _after_keeping(self, layer: Layer) -> None:
        """The layer has kept of all tokens what later ones read: after the last of such layers only
        the outputs matter."""
        if layer.index == self._config.n_keeping - 1:
            self._outputs_only = True

    def gated_unit(
        self,
        layer: Layer,
        activation: str,
        threshold: float = 0.0,
        *,
        fused: bool = False,
        post: Tensor | None = None,
    ) -> None:
        """down @ (activation(gate @ x) * (up @ x)); activation, threshold: as Program.glu()'s.
        fused: gate and up are one matrix, gate first. post: the norm of what is added to the
        stream."""
        width, only = self._config.n_ff[layer.index], self._outputs_only
        if fused:
            gate, up = layer.split("ffn_up", width, width)
        else:
            gate, up = layer.matrix("ffn_gate"), layer.matrix("ffn_up")
        hidden = self._hidden_of(width)
        sparse = activation in HAVE_ZEROS
        marks = self._marks(layer["ffn_down"], width) if sparse else None
        columns = self._weights.columns(layer["ffn_down"]) if sparse else None
        if marks is not None:
            fields = hidden, activation, only, threshold, columns
            self._program.predicted(self._input, marks, gate, up, *fields)
        else:
            self._program.glu(self._input, gate, up, hidden, activation, only, threshold, columns)
        self._down(layer, "ffn_down", hidden, post, sparse=sparse)

    def embedded_unit(self, layer: Layer, activation: str, *, post: Tensor) -> None:
        """proj @ (activation(inp_gate @ stream) * what embed_in_layers() has for the layer), after
        the latest change. post: as gated_unit()'s."""
        width, only = self._config.layer_embedding, self._outputs_only
        self.add()
        hidden = self._program.shared_buffer("units of embeddings", width)
        gate, first = layer.matrix("inp_gate", width), layer.index * width
        self._program.unit(self._stream, gate, hidden, activation, only, self._beside, first)
        self._down(layer, "proj", hidden, post)

    def plain_unit(self, layer: Layer, activation: str, *, post: Tensor | None = None) -> None:
        """down @ activation(up @ x); activation is "relu" or "relu2". post: as gated_unit()'s."""
        self._plain_unit(layer, self._config.n_ff[layer.index], activation, "", post)

    def _plain_unit(
        self, layer: Layer, width: int, activation: str, suffix: str, post: Tensor | None = None
    ) -> None:
        hidden, only = self._hidden_of(width), self._outputs_only
        up = layer.matrix(f"ffn_up{suffix}")
        sparse = activation in HAVE_ZEROS
        marks = self._marks(layer[f"ffn_down{suffix}"], width) if sparse else None
        if marks is not None:
            columns = self._weights.columns(layer[f"ffn_down{suffix}"])
            fields = hidden, activation, only, 0, columns
            self._program.predicted(self._input, marks, None, up, *fields)
        else:
            self._program.unit(self._input, up, hidden, activation, outputs_only=only)
        self._down(layer, f"ffn_down{suffix}", hidden, post, sparse=sparse)

    def plain_unit_or_experts(self, layer: Layer, activation: str) -> None:
        """As gated_unit_or_experts(), of units as plain_unit()'s."""
        experts = self._config.experts
        if experts is None:
            self.plain_unit(layer, activation)
            return
        self._experts(layer, experts, activation, plain=True)
        if experts.shared_width:
            self.add()
            self._plain_unit(layer, experts.shared_width, activation, "_shexp")

    def _marks(self, down: Tensor, width: int) -> int | None:
        """A buffer whose elements are above zero for the neurons that are predicted to be; None:
        nothing predicts them."""
        predictor = self._weights.predictor(down)
        if predictor is None:
            return None
        inner, outer, bias = predictor
        between = self._program.shared_buffer("predictor", inner.shape[0])
        marks = self._program.shared_buffer("marks", width)
        only = self._outputs_only
        self._program.linear(self._input, [inner], between, outputs_only=only, alike=True)
        self._program.unit(between, Matrix(outer, bias), marks, "relu", only, alike=True)
        return marks

    def _hidden_of(self, width: int) -> int:
        if width not in self._hidden:
            self._hidden[width] = self._program.buffer(width)
        return self._hidden[width]

    def _down(
        self,
        layer: Layer,
        name: str,
        hidden: int,
        post: Tensor | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        down, only = layer.matrix(name), self._outputs_only
        if sparse:
            columns = self._weights.columns(down.weight)
            self._program.sparse(hidden, down, self._change, columns, outputs_only=only)
        else:
            self._program.linear(hidden, [down], self._change, outputs_only=only)
        self._changed, self._post = True, post

    def gated_unit_or_experts(
        self,
        layer: Layer,
        activation: str,
        threshold: float = 0.0,
        *,
        shared_gate: Tensor | None = None,
    ) -> None:
        """What the layer has of the two; beside experts one that all tokens go through, if there is
        one. threshold: of the unit alone. shared_gate (n_embd,): its result is multiplied by the
        sigmoid of this times what experts read."""
        experts = self._config.experts
        if experts is None or not experts.in_layer(layer.index):
            self.gated_unit(layer, activation, threshold)
            return
        self._experts(layer, experts, activation)
        if experts.shared_width:
            self.add()
            self._shared_expert(layer, experts.shared_width, activation, shared_gate)

    def _shared_expert(
        self, layer: Layer, width: int, activation: str, shared_gate: Tensor | None
    ) -> None:
        gate, up = layer.matrix("ffn_gate_shexp"), layer.matrix("ffn_up_shexp")
        hidden, only = self._hidden_of(width), self._outputs_only
        self._program.glu(self._input, gate, up, hidden, activation, outputs_only=only)
        self._down(layer, "ffn_down_shexp", hidden)
        if shared_gate is not None:
            self._program.gate(self._input, shared_gate, self._change, outputs_only=only)

    def gated_unit_and_experts(self, layer: Layer, activation: str, *, post: Tensor) -> None:
        """A unit for all tokens and experts side by side, each with norms of its own before and
        after, as the router has one before; post: as gated_unit()'s."""
        c, program, only = self._config, self._program, self._outputs_only
        assert c.experts is not None
        self.gated_unit(layer, activation)
        of_unit, unit = layer["post_ffw_norm_1"], self._change
        program.norm(unit, of_unit, unit, c.norm_eps, outputs_only=only)
        seen = program.shared_buffer("router's input", c.n_embd)
        read = program.shared_buffer("experts' own input", c.n_embd)
        norm = layer.needed("ffn_gate_inp.scale")
        program.norm(self._stream, norm, seen, c.norm_eps, outputs_only=only)
        program.norm(self._stream, layer["pre_ffw_norm_2"], read, c.norm_eps, outputs_only=only)
        weight = layer["ffn_gate_inp"]
        require_rows(weight, c.experts.count)
        router = Matrix(weight, None, c.n_embd**-0.5)
        self._change = program.shared_buffer("experts' sum", c.n_embd)
        self._experts(layer, c.experts, activation, router=router, seen=seen, read=read)
        routed, self._change = self._change, unit
        norm = layer["post_ffw_norm_2"]
        program.add(unit, routed, c.norm_eps, norm, outputs_only=only)
        self._post = post

    def _experts(
        self,
        layer: Layer,
        experts: Experts,
        activation: str,
        *,
        plain: bool = False,
        router: Matrix | None = None,
        seen: int = -1,
        read: int = -1,
    ) -> None:
        """Units of which a router chooses some for each token, weighted and added; plain: they
        have no gates. router: None for the file's; seen, read: the buffers that it and the units
        read, if not the part's input."""
        router = layer.matrix("ffn_gate_inp", experts.count) if router is None else router
        seen, read = (self._input if given < 0 else given for given in (seen, read))
        only, program = self._outputs_only, self._program
        if self._router is None:
            self._router = program.buffer(experts.count), program.buffer(2 * experts.used)
        logits, choices = self._router
        program.linear(seen, [router], logits, outputs_only=only, alike=True)
        program.route(
            logits,
            choices,
            experts.used,
            experts.gating,
            bias=layer.beside("exp_probs_b.bias"),
            normalised=experts.normalised,
            scale=experts.scale,
            n_groups=experts.groups,
            n_groups_used=experts.groups_used,
            outputs_only=only,
        )
        width, up = experts.width, None
        if plain:
            gate = layer.stack("ffn_up_exps", width)
        elif layer.get("ffn_gate_up_exps") is not None:  # the rows of gate, then those of up
            gate = layer.stack("ffn_gate_up_exps", 2 * width)
        else:
            gate, up = layer.stack("ffn_gate_exps", width), layer.stack("ffn_up_exps", width)
        whole, given, latent = read, self._change, experts.latent
        if latent:
            read = program.shared_buffer("latent row", latent)
            given = program.shared_buffer("experts' latent sum", latent)
            before = layer.matrix("ffn_latent_down", latent)
            program.linear(whole, [before], read, outputs_only=only)
            program.add(read, outputs_only=only)
        program.experts(
            read,
            choices,
            given,
            experts.used,
            gate,
            up,
            layer.stack("ffn_down_exps"),
            activation,
            outputs_only=only,
            plain=plain,
        )
        if latent:
            program.add(given, outputs_only=only)
            after = layer.matrix("ffn_latent_up")
            program.linear(given, [after], self._change, outputs_only=only)
        self._changed, self._post = True, None

    def logits(
        self, *, norm: str = "output_norm", centred: bool = False, biased: bool = False
    ) -> None:
        """The stream is normed, and the output's matrix, or else the embedding's, makes logits of
        it. Where the program's layers end before the model's, it gives the stream as it is.

        norm: its tensor. centred: by a LayerNorm, not an RMS norm; biased: the norm may have a
        bias."""
        c, weights = self._config, self._weights
        if c.layers.stop < c.n_layers:
            if self._changed:
                self.add()
            self._program.give(self._stream)
            return
        bias = weights.get(f"{norm}.bias") if biased else None
        self.norm(weights[f"{norm}.weight"], bias=bias, centred=centred)
        tied = None if weights.has("output.weight") else weights.get("token_embd.weight")
        output = weights.matrix("output", otherwise=tied)
        self._program.logits(self._normed, output, c.logit_softcap, c.logit_scale)
