"""The instruction sets that can run here, `ref` first; the fixture `isa` puts each in force."""

import mmrt

ISAS = list(dict.fromkeys(variant.isa for variant in mmrt.kernels.variants()))
assert ISAS[0] == "ref"
