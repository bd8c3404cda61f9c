"""On Ray the inference processes of a machine belong to an actor that holds its GPUs.

Ray hides GPUs from tasks that don't ask for any, and lends them to nobody else while the actor holds them. Tasks on the
machine, and the worker processes that they start, ask the actor's inference processes as they ask any others.
"""

from typing import Any

from medgen.devices import devices, serve_elsewhere
from medgen.inference import own_inference

NAME = "medgen-inference"


class InferenceOwner:
    """The actor: owns the inference processes of its machine."""

    def __init__(self) -> None:
        own_inference()

    def devices(self) -> tuple[str, ...]:
        """What it serves."""
        return devices()


def use_inference_owner() -> None:
    """Makes the tasks of this Ray worker ask the actor of its machine, which is started when there is none yet.

    Does nothing on a machine without a GPU that Ray knows of.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # by ray
    gpus = next((here["Resources"].get("GPU", 0) for here in nodes if here["NodeID"] == node), 0)
    if not gpus:
        return
    actor: Any = (
        ray.remote(InferenceOwner)
        .options(
            name=f"{NAME}-{node}",
            get_if_exists=True,
            num_cpus=0,
            num_gpus=gpus,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
    )
    serve_elsewhere(ray.get(actor.devices.remote()))
    _kept.append(actor)  # an actor ends with its last handle


_kept: list[Any] = []
