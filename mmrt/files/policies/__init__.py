"""Named ways of bringing weights into memory: what `mmrt.open`, `mmrt.Model` and --policy take.

A policy is a module here with `apply(tensors, program)`, and a line in POLICIES. It is given the
tensors of a file that was just mapped: all of them in file order; or, for a model, those that its
program reads, in the order in which it first does, and the program. Where it raises, the file is
closed again. A policy warns the user with warnings.warn().
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from mmrt.core.arguments import choice

if TYPE_CHECKING:
    from mmrt.core.program import Program
    from mmrt.core.tensor import Tensor

__all__ = ["POLICIES", "Policy", "policy"]

POLICIES = {
    "lazy": "read what is touched, with the kernel's usual read-ahead",
    "prefetch": "start reading all weights in the background, as far as memory is free",
    "populate": "read and map all weights before going on",
    "random": "read single pages as they are touched, nothing around them",
    "sequential": "read far ahead of what is touched, and let go behind it",
    "numa": "read all weights, each row into the memory of the node whose threads multiply with it",
    "locked": "read all weights, and keep them in memory for good",
}

Policy = Callable[[Sequence["Tensor"], "Program | None"], None]


def policy(name: str) -> Policy:
    """The `apply` of the policy `name`. Raises ArgumentError if there is none of that name."""
    apply: Policy = import_module(f"mmrt.files.policies.{choice('policy', name, POLICIES)}").apply
    return apply
