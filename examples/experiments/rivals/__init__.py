"""Rival methods, each from its paper, and the one loop that trains with any of them."""

from examples.experiments.rivals.effective_minibatch import EffectiveMinibatch
from examples.experiments.rivals.exponential_average import (
    Biased,
    ExponentialAverage,
)
from examples.experiments.rivals.infobatch import InfoBatch
from examples.experiments.rivals.loop import Counts, Diverged, train
from examples.experiments.rivals.online_batch_selection import OnlineBatchSelection
from examples.experiments.rivals.presampling import Presampling
from examples.experiments.rivals.reshuffled import Reshuffled
from examples.experiments.rivals.rival import Observed, Rival
from examples.experiments.rivals.selective_backprop import SelectiveBackprop

__all__ = ["RIVALS", "Counts", "Diverged", "Observed", "Rival", "train"]

RIVALS: dict[str, type[Rival]] = {
    "presampling": Presampling,
    "online_batch_selection": OnlineBatchSelection,
    "selective_backprop": SelectiveBackprop,
    "infobatch": InfoBatch,
    "effective_minibatch": EffectiveMinibatch,
    "exponential_average": ExponentialAverage,
    "exponential_average_biased": Biased,
    "reshuffled": Reshuffled,
}
