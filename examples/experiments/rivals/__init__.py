"""Rival methods, each from its paper, and the one loop that trains with any of them."""

from experiments.rivals.effective_minibatch import EffectiveMinibatch
from experiments.rivals.infobatch import InfoBatch
from experiments.rivals.loop import Counts, Diverged, train
from experiments.rivals.online_batch_selection import OnlineBatchSelection
from experiments.rivals.presampling import Presampling
from experiments.rivals.reshuffled import Reshuffled
from experiments.rivals.rival import Observed, Rival
from experiments.rivals.selective_backprop import SelectiveBackprop

__all__ = ["RIVALS", "Counts", "Diverged", "Observed", "Rival", "train"]

RIVALS: dict[str, type[Rival]] = {
    "presampling": Presampling,
    "online_batch_selection": OnlineBatchSelection,
    "selective_backprop": SelectiveBackprop,
    "infobatch": InfoBatch,
    "effective_minibatch": EffectiveMinibatch,
    "reshuffled": Reshuffled,
}
