"""Stages as actors of Ray: it places them by their memory, and starts them again where they end.

Ray starts and places; hidden rows go straight from stage to stage, over the wire of all clusters,
as a call of an actor takes longer than a small stage does.
"""

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from mmrt.cluster import planning
from mmrt.cluster.coordinator import Cluster
from mmrt.cluster.hosts import parse_host
from mmrt.cluster.planning import Shape
from mmrt.cluster.server import StageServer
from mmrt.cluster.stage import Stage
from mmrt.errors import ClusterError, UnsupportedError
from mmrt.memory.sizes import parse_size

# Seconds for an actor to say where its stage listens, and for one that begins.
_ANSWER_SECONDS, _START_SECONDS = 10.0, 300.0

# Bytes of a Ray that is begun here for objects: the least, as all that is large goes over our wire.
_OBJECTS = 80 << 20


class _Actor:
    """A stage, or none yet, on whichever node Ray chooses."""

    def __init__(
        self, path: str, layers: tuple[int, int] | None, secret: bytes, options: dict[str, Any]
    ) -> None:
        self._path = path
        if layers is None:
            return
        self._stage = Stage(path, range(*layers), **options)
        self._server = StageServer(self._stage, (_ray().util.get_node_ip_address(), 0), secret)
        threading.Thread(target=self._server.serve, daemon=True).start()

    def place(self) -> str:
        return "{}:{}".format(*self._server.address)

    def process(self) -> int:
        return os.getpid()

    def measure(self) -> str:
        return str(planning.measure(self._path))


class RayStages:
    """Stages of the model in the GGUF file `path`, which each node of a Ray cluster has under that
    name; a context manager.

    layers: of each stage; None: each node is measured, and they are cut as `mmrt plan` would.
    address: of the Ray cluster; None: the one that this machine has joined, or if there is none, a
    new one of this machine alone, which ends with the stages; "local": always such a one.
    memory: bytes of each stage's budget, by which Ray finds a node with room (its resource
    `memory`); None: what the stage's weights take, and the budget is the node's. Other arguments
    are Stage's.

    A stage that ends is begun again by Ray, on its node or on another with room; find() says where
    it listens then.

    Raises UnsupportedError where ray is not installed, ClusterError for what Ray refuses.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layers: Sequence[range] | None = None,
        *,
        address: str | None = None,
        memory: int | str | None = None,
        context: int | None = None,
        **options: Any,
    ) -> None:
        ray = _ray()
        self.path = os.path.abspath(path)
        self.secret = os.urandom(32)
        self._actors: list[Any] = []
        self._begun = not ray.is_initialized()
        options |= {"memory": memory, "context": context}
        shape = Shape.of(self.path, context)
        if self._begun:
            _begin(address)
        try:
            if layers is None:
                layers, nodes = self._plan(shape)
            else:
                nodes = [None] * len(layers)
            for part, node in zip(layers, nodes, strict=True):
                told = (part.start, part.stop)
                room = shape.held(part) if memory is None else memory
                room = parse_size(room) if isinstance(room, str) else room
                self._actors.append(self._start(told, options, room, node))
            self.find(_START_SECONDS)
        except BaseException:
            self.close()
            raise

    def _start(
        self, layers: tuple[int, int] | None, options: dict[str, Any], room: int, node: str | None
    ) -> Any:
        how: dict[str, Any] = {"memory": room, "num_cpus": 0, "max_restarts": -1}
        how["max_task_retries"] = -1
        how["scheduling_strategy"] = "SPREAD"
        if node is not None:
            affinity = _ray().util.scheduling_strategies.NodeAffinitySchedulingStrategy
            how["scheduling_strategy"] = affinity(node, soft=True)
        return _ray().remote(_Actor).options(**how).remote(self.path, layers, self.secret, options)

    def _plan(self, shape: Shape) -> tuple[list[range], list[str | None]]:
        """The layers of each stage, and their nodes."""
        ray = _ray()
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        measuring = [self._start(None, {}, 0, node) for node in nodes]
        try:
            lines = _answers([actor.measure.remote() for actor in measuring], _START_SECONDS)
        finally:
            for actor in measuring:
                ray.kill(actor)
        hosts = [
            parse_host([f"node:{i}", *line.split()[1:]]) for i, line in enumerate(map(str, lines))
        ]
        placed = planning.plan(shape, hosts).placed
        return [each.layers for each in placed], [
            nodes[int(each.host.place.partition(":")[2])] for each in placed
        ]

    def find(self, seconds: float = _ANSWER_SECONDS) -> list[str]:
        """Where the stages listen now. ClusterError if one is not there."""
        return _answers([actor.place.remote() for actor in self._actors], seconds)

    def processes(self) -> list[int]:
        """The process of each stage, on its node."""
        return _answers([actor.process.remote() for actor in self._actors], _ANSWER_SECONDS)

    def close(self) -> None:
        """Ends the stages, and Ray if it was begun for them."""
        ray = _ray()
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        if self._begun:
            ray.shutdown()
            self._begun = False

    def __enter__(self) -> "RayStages":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class RayCluster(Cluster):
    """The model in the GGUF file `path` on the nodes of a Ray cluster, by stages that begin and end
    with it.

    layers, address, memory, context: as RayStages has them. Other arguments are Cluster's.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        layers: Sequence[range] | None = None,
        *,
        address: str | None = None,
        memory: int | str | None = None,
        context: int | None = None,
        **options: Any,
    ) -> None:
        how: dict[str, Any] = {"address": address, "memory": memory, "context": context}
        self.on_ray = RayStages(path, layers, **how)
        try:
            super().__init__(self.on_ray.find, self.on_ray.secret, model=path, **options)
        except BaseException:
            self.on_ray.close()
            raise

    def close(self) -> None:
        super().close()
        self.on_ray.close()


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise UnsupportedError(
            "stages on Ray need the package ray: pip install 'mmrt[ray]'"
        ) from None
    return ray


def _begin(address: str | None) -> None:
    # Its monitor counts mapped weights as used memory, and would end stages for it.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    ray, how = _ray(), {"log_to_driver": False, "logging_level": "error"}
    try:
        if address is None:
            try:
                ray.init(address="auto", **how)
                return
            except ConnectionError:  # there is none
                address = "local"
        if address == "local":
            how |= {"include_dashboard": False, "object_store_memory": _OBJECTS}
        ray.init(address=address, **how)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"Ray: {error}") from None


def _answers(calls: list[Any], seconds: float) -> list[Any]:
    ray = _ray()
    try:
        found: list[Any] = ray.get(calls, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise ClusterError(f"Ray: a stage has not begun in {seconds:g} s") from None
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray: {_reason(str(error))}") from None
    return found


def _reason(message: str) -> str:
    """The last line of a traceback, which names what was raised."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "an actor has failed"
