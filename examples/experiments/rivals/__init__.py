"""Rival methods, each from its paper, and the one loop that trains with any of them."""

from experiments.rivals.infobatch import InfoBatch
from experiments.rivals.loop import Counts, Diverged, train
from experiments.rivals.reshuffled import Reshuffled
from experiments.rivals.rival import Observed, Rival

__all__ = ["RIVALS", "Counts", "Diverged", "Observed", "Rival", "train"]

RIVALS: dict[str, type[Rival]] = {
    "infobatch": InfoBatch,
    "reshuffled": Reshuffled,
}
