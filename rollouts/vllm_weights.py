"""The receiving end of weight sync inside vLLM: its own weight-transfer interface, fed with our parcels."""

import pickle
from dataclasses import dataclass
from typing import Any, cast

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from rollouts.vllm_cpu import forget_packed_experts, pack_heads_again
from rollouts.vllm_engine import PARCELS
from rollouts.weight_sync import Parcel


@dataclass
class NoRendezvous(WeightTransferInitInfo):
    """Parcels come with the call; there is nothing to agree on before."""


@dataclass
class Delivery(WeightTransferUpdateInfo):
    parcel: Any  # a Parcel, pickled on its way to another process; opened by every process of the engine
    first_rank: int  # of the engine's processes among all that read it
    known: list[str]  # names of the tensors to load; others (MTP) are left


class ParcelEngine(WeightTransferEngine[NoRendezvous, Delivery]):
    init_info_cls = NoRendezvous
    update_info_cls = Delivery

    def init_transfer_engine(self, init_info: NoRendezvous) -> None:
        pass

    def start_weight_update(self) -> None:
        if current_platform.is_cpu():
            forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: Delivery) -> None:
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        known = set(update_info.known)
        rank = update_info.first_rank + self.vllm_config.parallel_config.rank
        sent = update_info.parcel
        parcel: Parcel = pickle.loads(sent) if isinstance(sent, bytes) else sent
        with parcel.open(rank, self.device) as tensors, disable_mtp_completeness_check():
            cast(Any, self.model).load_weights((name, tensor) for name, tensor in tensors if name in known)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            pack_heads_again(self.model)

    def shutdown(self) -> None:
        pass


def register() -> None:
    """Make the backend known to vLLM in this process; vLLM calls it in its worker processes (see pyproject.toml)."""
    if PARCELS not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(PARCELS, ParcelEngine)
