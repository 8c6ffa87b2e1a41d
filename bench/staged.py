"""One stage of a cluster, in a process of its own, which bench.stages starts on a machine of its:
`python -m bench.staged MODEL LAYERS CONTEXT SECRET_FILE`.

For each line that it reads it says, as JSON, what it has done so far.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmrt import counters
from mmrt.cli.split import layers
from mmrt.cluster.server import StageServer
from mmrt.cluster.stage import Stage
from mmrt.cluster.wire import read_secret
from mmrt.core.program import Part

PORT = 7600


class _Timed(Stage):
    """seconds: that its steps have taken."""

    seconds = 0.0

    def run(
        self, parts: Sequence[Part], rows: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        begun = time.perf_counter()
        given = super().run(parts, rows)
        self.seconds += time.perf_counter() - begun
        return given


def main() -> None:
    path, part, context, secret = sys.argv[1:]
    stage = _Timed(path, layers(part), context=int(context))
    with stage, StageServer(stage, ("eth0", PORT), read_secret(secret)) as server:
        threading.Thread(target=server.serve, daemon=True).start()
        print("ready", flush=True)
        for _ in sys.stdin:
            reads = counters.reads()
            told = {"seconds": stage.seconds, "read": reads.read_bytes or 0}
            told |= {"faults": reads.major_faults, "weights": stage.weights, "kept": stage.kept}
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
