"""From the sums of many micro-batches and ranks to the metrics of one mini-batch.

`policy_loss` and `mismatch_sums` return sums and counts, never means: means of unequal micro-batches do not add up.
"""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

# metric name: (sum, count it is divided by)
MEANS = {
    "loss/importance_ratio_mean": ("importance_ratio", "tokens"),
    "loss/clip_fraction_low": ("clipped_low", "tokens"),
    "loss/clip_fraction_high": ("clipped_high", "tokens"),
    "loss/masked_sequences": ("masked_sequences", "sequences"),
    "loss/moved_masks": ("moved_masks", "sequences"),  # other than the old logprobs tell
    "kl/old_k3": ("kl_old_k3", "tokens"),
    "kl/reference_k3": ("kl_reference_k3", "tokens"),
    "mismatch/abs_mean": ("mismatch_abs", "mismatch_tokens"),
    "mismatch/kl": ("mismatch_k3", "mismatch_tokens"),
    "correction/weight_mean": ("correction_weight", "correction_units"),
    "correction/capped": ("correction_capped", "correction_units"),
    "correction/masked": ("correction_masked", "correction_units"),
    "mismatch/routing_agreement": ("routing_own", "routing_own_pairs"),
    "mismatch/routing_agreement_used": ("routing_used", "routing_used_pairs"),
}
# metric name: key taken as it is
PLAIN = {
    "loss/importance_ratio_max": "importance_ratio_max",
    "loss/nonfinite_tokens": "nonfinite_tokens",
    "mismatch/abs_max": "mismatch_abs_max",
    "correction/weight_max": "correction_weight_max",
}


def combine(parts: Iterable[Mapping[str, Tensor | float]]) -> dict[str, float]:
    """Add up sums; keys ending in `_max` take the maximum. Its result may be combined again, over ranks."""
    combined: dict[str, float] = {}
    for part in parts:
        for key, value in part.items():
            value = float(value)
            if key not in combined:
                combined[key] = value
            elif key.endswith("_max"):
                combined[key] = _nan_or_max(combined[key], value)
            else:
                combined[key] += value
    return combined


def mini_batch_metrics(combined: Mapping[str, float]) -> dict[str, float]:
    """Metrics by the names they are logged under; those whose sums are missing, or count nothing, are left out."""
    metrics = {name: combined[key] for name, key in PLAIN.items() if key in combined}
    for name, (total, count) in MEANS.items():
        if total in combined and combined.get(count):
            metrics[name] = combined[total] / combined[count]
    if combined.get("correction_units"):
        metrics["correction/ess"] = _effective_share(combined)
    return metrics


def _effective_share(combined: Mapping[str, float]) -> float:
    """Kish's effective sample size of the correction weights over their number: 1 if all are equal, 0 if all are 0."""
    squares = combined["correction_weight_square"]
    return combined["correction_weight"] ** 2 / (combined["correction_units"] * squares) if squares else 0.0


def _nan_or_max(a: float, b: float) -> float:
    # max() keeps or drops a NaN depending on the order
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)
