"""What one training run of the experiments is: the key under which it is kept."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run. Studies that ask for equal settings share the run.

    Attributes:
        data: a name in `sets.NAMES`.
        network: a name in `networks.NAMES`.
        method: a name in `methods.METHODS`.
        epochs: T, the length of the learning-rate schedule in epochs of uniform
            training.
        rate: peak learning rate.
        parameter: the method's own parameter, or `None` where it has none.
        optimizer: "sgd", "momentum", "adam" or "adamw".
        batch_size: m.
        seed: of the initial weights and of every draw.
        purpose: "tune" (validation error only), "error" (test error once, at the end),
            "seconds" (alone on the machine), "target" (both, for the time to a target)
            or "overhead" (time of a step by part).
    """

    data: str
    network: str
    method: str
    epochs: int
    rate: float
    parameter: float | None = None
    optimizer: str = "momentum"
    batch_size: int = 64
    seed: int = 0
    purpose: str = "error"

    @property
    def key(self) -> dict[str, object]:
        """The setting as a flat dictionary, for JSON."""
        return dataclasses.asdict(self)
