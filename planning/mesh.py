"""What the ranks of a mesh hold of a model. The layout is training.layers' and training.parallel's."""

from dataclasses import dataclass

from planning.architecture import Architecture
from training.mesh import MeshConfig


@dataclass(frozen=True, slots=True)
class Held:
    """Parameters of the layers of one pipeline rank, before they are sharded over the data ranks."""

    dense: float
    routed: float
    layers: float  # decoder layers
    ends: float  # of these parameters, embedding and head
    largest_block: float  # dense parameters of the largest layer
    block_experts: float  # routed parameters of one layer


def heaviest_rank(model: Architecture, mesh: MeshConfig, mtp: bool) -> Held:
    """Of the ranks of a pipeline the one that holds most. Rank 0 has embedding, head and MTP layer."""
    held = [_held(model, mesh.pipeline, rank, mtp) for rank in range(mesh.pipeline)]
    return max(held, key=lambda one: one.dense + one.routed)


def chunk_sizes(layers: int, ranks: int) -> list[int]:
    """Layers of each of the 2 * ranks chunks (training.layers.cut, which imports torch)."""
    size, over = divmod(layers, 2 * ranks)
    return [size + (1 <= chunk <= over) for chunk in range(2 * ranks)]


def _held(model: Architecture, ranks: int, rank: int, mtp: bool) -> Held:
    if ranks == 1:
        own = list(range(model.layers))
    else:
        sizes = chunk_sizes(model.layers, ranks)
        starts = [sum(sizes[:chunk]) for chunk in range(2 * ranks)]
        chunks = (rank, 2 * ranks - 1 - rank)
        own = [layer for c in chunks for layer in range(starts[c], starts[c] + sizes[c])]
    moe = sum(layer >= model.dense_layers for layer in own)
    block_experts = model.experts * model.expert_parameters if model.moe_layers else 0
    dense = (len(own) - moe) * model.layer_parameters + moe * model.moe_layer_dense_parameters
    routed, ends = moe * block_experts, 0
    if rank == 0:
        ends = model.embedding_parameters * (1 if model.tied else 2)
        dense += ends + model.width
        if mtp:
            dense += model.mtp_dense_parameters
            routed += model.mtp_layers * block_experts
    block = max(model.layer_parameters if model.dense_layers else 0, model.moe_layer_dense_parameters * bool(moe))
    return Held(dense, routed, len(own), ends, block, block_experts)


def pipeline_efficiency(mesh: MeshConfig, rows: float) -> float:
    """Share of a step in which a rank of a pipeline works, with `rows` rows of equal length per data rank.

    rows / (rows + 0.65 (P - 1)): the form of all such schedules, the factor fitted to what DualPipeV's own plan gives
    without split backward passes (docs/training.md: P 4 waits 5 % of 32 rows and 19 % of 8, P 8 7 % of 64).
    """
    waits = 0.65 * (mesh.pipeline - 1)
    return rows / (rows + waits) if mesh.pipeline > 1 else 1.0
