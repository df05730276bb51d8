"""A calibration with round numbers, for plans that must not depend on the machine that tests run on."""

from planning.calibration import Calibration, PassCosts, StepCosts

FORWARD = PassCosts(
    dense_flop=2e-11, expert_flop=5e-11, attention_flop=4e-11, element=1e-9, logit=3e-9, layer=2e-4, moe_layer=4e-4
)
TRAINING = PassCosts(
    dense_flop=6e-11, expert_flop=2e-10, attention_flop=1e-10, element=4e-9, logit=6e-9, layer=6e-4, moe_layer=1e-3
)
DECODING = StepCosts(
    dense_flop=3e-11, expert_flop=1e-10, weight=1e-10, cached=1e-9, logit=5e-9, slot=1e-5, layer=2e-4, moe_layer=4e-4
)
CALIBRATION = Calibration(
    machine={"cpu": "a test"}, cores=2, memory_bytes=16 * 2**30, forward=FORWARD, training=TRAINING, decoding=DECODING,
    optimizer_s=3e-9, copy_bytes_per_s=8e9, gemm_flops=5e10, thread_gain=1.8, thread_gain_measured=True,
    process_bytes=3e8, heap_factor=1.0,
)  # fmt: skip
