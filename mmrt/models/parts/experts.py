"""Mixtures of experts, as metadata describes them (Shazeer et al. 2017, arXiv:1701.06538)."""

from dataclasses import dataclass

from mmrt.models.parts.fields import Fields

# Values of expert_gating_func, from 1 on: how a router's logits become weights.
_GATINGS = ("softmax", "sigmoid", "chosen", "sqrt_softplus")


@dataclass(frozen=True)
class Experts:
    count: int
    used: int  # of each token
    width: int  # of the units that they are; 0: the file does not say
    shared_width: int  # of one more, which all tokens go through; 0: there is none
    gating: str  # see Program.route
    normalised: bool  # the weights of a token's experts add up to 1
    scale: float  # of these weights
    groups: int  # experts are chosen from the best `groups_used` of so many
    groups_used: int
    leading_dense: int  # so many layers come first that have no experts
    step: int  # of those after them, every one whose number is a multiple has
    latent: int = 0  # width of what they read and give, made by a matrix before and after; 0: none

    def in_layer(self, layer: int) -> bool:
        """Whether the layer, counted from 0, has experts."""
        return layer >= self.leading_dense and (layer + 1) % self.step == 0


def experts_from(
    fields: Fields,
    *,
    gating: str = "softmax",
    normalised: bool = True,
    width: str = "expert_feed_forward_length",
) -> Experts | None:
    """What the metadata says, or None if the model has none. gating, normalised: of the
    architecture, where the file does not say; width: the field that says it then."""
    count = fields.integer("expert_count", 0, least=0)
    if not count:
        return None
    used = fields.integer("expert_used_count", 0, least=0)
    if not 1 <= used <= count:
        raise fields.error("expert_used_count", f"expected 1 to {count}, found {used}")
    function = fields.integer("expert_gating_func", _GATINGS.index(gating) + 1, least=0)
    if not 1 <= function <= len(_GATINGS):
        raise fields.unsupported("expert_gating_func", f"{function}: unknown")
    groups = fields.integer("expert_group_count", 1, least=0) or 1
    groups_used = fields.integer("expert_group_used_count", groups, least=0) or groups
    if count % groups or groups_used > groups or groups_used * (count // groups) < used:
        raise fields.error(
            "expert_group_count", f"{used} of {count} experts do not fit {groups_used} of {groups}"
        )
    own_width = _width(fields, width)
    return Experts(
        count=count,
        used=used,
        width=own_width,
        shared_width=_shared_width(fields, own_width),
        gating=_GATINGS[function - 1],
        normalised=fields.flag("expert_weights_norm", normalised),
        scale=fields.number("expert_weights_scale", 1.0, or_zero=True) or 1.0,
        groups=groups,
        groups_used=groups_used,
        leading_dense=fields.integer("leading_dense_block_count", 0, least=0),
        step=fields.integer("interleave_moe_layer_step", 1),
    )


def _width(fields: Fields, otherwise: str) -> int:
    own = fields.integer("expert_feed_forward_length", 0, least=0)
    return own or fields.integer(otherwise, 0, least=0)


def _shared_width(fields: Fields, width: int) -> int:
    """Shared experts lie in one unit, side by side."""
    count = fields.integer("expert_shared_count", 0, least=0)
    own = fields.integer("expert_shared_feed_forward_length", 0, least=0)
    if count and not own and not width:
        raise fields.error("expert_feed_forward_length", f"missing, for {count} shared experts")
    return own or count * width
