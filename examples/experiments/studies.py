"""The studies: which methods meet on which data, how often, and for what question."""

import dataclasses
from collections.abc import Iterable, Sequence

TUNING_SEEDS = (100,)
"""Of the trials, where a study names no others: none of the final runs has them."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """One method at one length of the schedule, tuned on its own.

    Attributes:
        data: a name in `sets.NAMES`.
        network: a name in `networks.NAMES`.
        method: a name in `methods.METHODS`.
        epochs: T. Methods without an adapted rate get a shorter one, so that all end
            after about as many steps.
        optimizer: a name in `tuning.RATES`.
        batch_size: m.
    """

    data: str
    network: str
    method: str
    epochs: int
    optimizer: str = "momentum"
    batch_size: int = 64

    @property
    def place(self) -> tuple[str, str, str, int]:
        """What it shares with those it is held against."""
        return self.data, self.network, self.optimizer, self.batch_size


@dataclasses.dataclass(frozen=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
        name: on the command line.
        title: in the report.
        question: what it is to settle.
        contenders: what is trained.
        trials: of tuning, for each contender on Fashion-MNIST; elsewhere at most four.
        seeds: of the final runs on Fashion-MNIST; elsewhere the first three of them.
        timed: repetitions alone on the machine, interleaved within a group; at most
            two off Fashion-MNIST.
        tuning_seeds: that each trial is run with; their mean error chooses.
        everywhere: whether other data gets as many seeds as Fashion-MNIST.
    """

    name: str
    title: str
    question: str
    contenders: tuple[Contender, ...]
    trials: int
    seeds: tuple[int, ...]
    timed: int = 0
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS
    everywhere: bool = False

    def tuning_of(self, contender: Contender) -> tuple[int, tuple[int, ...]]:
        """Returns how many trials of tuning a contender gets, and their seeds."""
        on_fashion = contender.data == "fashion"
        return self.trials if on_fashion else min(self.trials, 4), self.tuning_seeds

    def tuning_runs_of(self, contender: Contender) -> int:
        """Returns how many runs the trials of a contender take."""
        count, seeds = self.tuning_of(contender)
        return count * len(seeds)

    def seeds_of(self, contender: Contender) -> tuple[int, ...]:
        """Returns the seeds of a contender's final runs."""
        full = contender.data == "fashion" or self.everywhere
        return self.seeds if full else self.seeds[:3]

    def timed_of(self, contender: Contender) -> int:
        """Returns how often a contender is timed."""
        return self.timed if contender.data == "fashion" else min(self.timed, 2)


def smoke(study: Study) -> Study:
    """Returns a study that ends soon: each method once, and RAIS everywhere."""
    kept, seen = [], set()
    for contender in study.contenders:
        if contender.method not in seen or contender.method == "rais":
            kept.append(dataclasses.replace(contender, epochs=3))
        seen.add(contender.method)
    kept = list(dict.fromkeys(kept))
    return dataclasses.replace(
        study,
        contenders=tuple(kept),
        trials=min(study.trials, 1),
        seeds=study.seeds[:1],
        tuning_seeds=study.tuning_seeds[:1],
        timed=min(study.timed, 1),
    )


UNIFORM = (4, 6, 8, 11, 16)
"""Epochs of uniform training: the curve that others are held against."""

_ALL = (
    ("reshuffled", 6),
    ("with_replacement", 6),
    ("rais", 6),
    ("rais", 10),
    ("rais", 14),
    ("rais_independent", 10),
    ("rais_fixed_rate", 6),
    ("rais_exact", 10),
    ("point_estimate", 10),
    ("presampling", 6),
    ("online_batch_selection", 6),
    ("selective_backprop", 8),
    ("infobatch", 8),
    ("effective_minibatch", 10),
)
_CLEANING = (("rais", 10), ("rais_cleaned", 10))
_FEW = (("rais", 10), ("infobatch", 8), ("effective_minibatch", 10))


def group(
    data: str,
    network: str,
    methods: Iterable[tuple[str, int]] = (("rais", 10),),
    uniform: Sequence[int] = (5, 9, 14),
    **others: object,
) -> tuple[Contender, ...]:
    """Returns contenders that are held against each other."""
    named = [*(("uniform", epochs) for epochs in uniform), *methods]
    return tuple(
        Contender(data, network, method, epochs, **others) for method, epochs in named
    )


def _scaled(methods: Iterable[tuple[str, int]], factor: float) -> list[tuple[str, int]]:
    return [(name, max(1, round(epochs * factor))) for name, epochs in methods]


_MAIN = (
    *group("fashion", "cnn", _ALL, UNIFORM),
    *group("fashion", "mlp", _ALL, UNIFORM),
    *group("rotated-50k", "cnn", _FEW),
    *group("rotated-200k", "cnn", _scaled(_FEW, 0.6), (3, 5, 8)),
    *group("shuttle", "table", _scaled(_FEW, 2), (10, 18, 28)),
    *group("letter", "table", _scaled(_FEW, 3), (15, 27, 42)),
    *group("descriptions", "text", _FEW),
    *group(
        "words",
        "word",
        # InfoBatch never prunes the first epoch, nor the last.
        (("rais", 2), ("infobatch", 3), ("effective_minibatch", 2)),
        (1, 2, 3),
        batch_size=512,
    ),
)
_ONE = (0,)
_THREE = (0, 1, 2)
_FIVE = (0, 1, 2, 3, 4)
_TEN = {
    "trials": 3,
    "seeds": tuple(range(20, 30)),
    "tuning_seeds": (101, 102),
    "everywhere": True,
}
"""Of a study that can tell 0.6 from 1: no other one has its seeds."""

STUDIES = {
    study.name: study
    for study in (
        Study(
            "main",
            "Methods and data",
            "Which method reaches equal test error in the fewest steps and seconds?",
            _MAIN,
            6,
            _FIVE,
            timed=3,
        ),
        Study(
            "passes",
            "Few passes",
            "What is left where training ends after three to six passes?",
            group(
                "fashion",
                "mlp",
                (("rais", 3), ("rais", 6), ("rais_early_start", 3)),
                (2, 3, 4, 6, 9),
            ),
            **_TEN,
        ),
        Study(
            "batch",
            "Small and large batches",
            "What is left where the gradient's variance is higher or lower by far?",
            (
                *group("fashion", "mlp", (("rais", 7),), (3, 4, 6, 9), batch_size=32),
                *group("fashion", "mlp", (("rais", 7),), (4, 7, 10), batch_size=512),
            ),
            **_TEN,
        ),
        Study(
            "augmentation",
            "Augmentation",
            "What is left when every visit shows another image?",
            group(
                "shifted-strong",
                "cnn",
                (("rais", 6),),
                (3, 4, 6, 9),
                optimizer="adamw",
                batch_size=128,
            ),
            **_TEN,
        ),
        Study(
            "text",
            "Texts",
            "Is there a gain for a transformer on texts, and by which norms?",
            group(
                "descriptions",
                "text_transformer",
                (("rais", 3), ("rais", 5), ("rais_exact", 3)),
                (2, 3, 5),
                optimizer="adamw",
            ),
            **_TEN,
        ),
        Study(
            "size",
            "Size of the training set",
            "How many examples does importance sampling need?",
            (
                *group("fashion-5k", "mlp", (("rais", 12),), (5, 8, 12, 18)),
                *group("fashion-10k", "mlp", (("rais", 10),), (4, 6, 9, 14)),
                *group("fashion-25k", "mlp", (("rais", 8),), (3, 5, 8, 12)),
            ),
            **_TEN,
        ),
        Study(
            "oracle_size",
            "O-SGD on few examples",
            "What do exact norms at every step give, regardless of their cost?",
            group("fashion-5k", "mlp", (("oracle", 20),), (10, 18, 28)),
            4,
            _THREE,
        ),
        Study(
            "noise",
            "Flipped labels",
            "What do wrong labels cost, and what does finding them give back?",
            (
                *group("noise-5", "mlp", _CLEANING, (5, 10)),
                *group("noise-20", "mlp", _CLEANING, (5, 10)),
            ),
            4,
            _THREE,
        ),
        Study(
            "parts",
            "Each part removed in turn",
            "What does each part of RAIS contribute?",
            group(
                "fashion",
                "cnn",
                (
                    ("rais", 10),
                    ("rais_not_robust", 10),
                    ("rais_no_floor", 10),
                    ("rais_two_features", 10),
                    ("rais_independent", 10),
                    ("rais_fixed_rate", 6),
                    ("rais_no_start", 10),
                    ("rais_no_retreat", 10),
                ),
                UNIFORM,
            ),
            6,
            _FIVE,
        ),
        Study(
            "depth",
            "Networks",
            "Does it carry over to residual networks and transformers?",
            (
                *group("fashion-25k", "resnet", uniform=(5, 9)),
                *group("fashion-25k", "resnet_bn", uniform=(5, 9)),
                *group("fashion-25k", "transformer", uniform=(5, 9)),
            ),
            3,
            _THREE,
        ),
        Study(
            "optimizers",
            "Optimizers",
            "Is the rule for the learning rate right for each optimizer?",
            tuple(
                item
                for name in ("sgd", "adam", "adamw")
                for item in group(
                    "fashion",
                    "mlp",
                    (("rais", 10), ("rais_fixed_rate", 6)),
                    (5, 10),
                    optimizer=name,
                )
            ),
            3,
            _THREE,
        ),
        Study(
            "oracle",
            "The variance that O-SGD would save",
            "How much of the optimum does RAIS attain, and how good are its estimates?",
            (
                Contender("fashion", "mlp", "rais_measured", 10),
                Contender("fashion", "cnn", "rais_measured", 10),
                Contender("rotated-50k", "cnn", "rais_measured", 10),
                Contender("fashion-5k", "mlp", "rais_measured", 20),
                Contender("descriptions", "text", "rais_measured", 10),
                Contender("words", "word", "rais_measured", 2, batch_size=512),
            ),
            1,
            _ONE,
        ),
        Study(
            "remedies",
            "What was tried where a target was missed",
            "Is it the clock, or the batch size, that keeps the gain small?",
            (
                *group(
                    "words",
                    "word",
                    (("rais", 2), ("rais_variance_clock", 2)),
                    (1, 2, 3),
                    batch_size=512,
                ),
                *group("words", "word", (("rais", 2),), (1, 2), batch_size=128),
            ),
            6,
            _THREE,
        ),
        Study(
            "overhead",
            "Where the time goes",
            "What does a step of importance sampling cost beside the training itself?",
            (
                Contender("fashion", "mlp", "overhead", 1),
                Contender("fashion", "cnn", "overhead", 1),
            ),
            0,
            (),
        ),
    )
}
