"""What a figure draws, and rows of a run to draw from."""

import io

import numpy as np
from matplotlib.figure import Figure

from keras_osgd.run_directory import PERCENTILES, percentile_name

EPOCHS = 4


def rows(seed: int, scale: float = 1.0) -> list[dict[str, float]]:
    """Returns the history of a run; validation is every second epoch."""
    rng = np.random.default_rng(seed)
    made = []
    for epoch in range(1, EPOCHS + 1):
        row = {
            "epoch": epoch,
            "steps": 100 * epoch * scale + seed,
            "seconds": 1.5 * epoch + seed,
            "effective_epochs": epoch + 0.01,
            "gain_ratio": 1 + 0.1 * epoch,
            "loss": 2.0 / epoch + rng.uniform(),
        }
        if epoch % 2 == 0:
            row["val_loss"] = row["loss"] + 0.1
        for q in PERCENTILES:
            row[percentile_name(q)] = np.exp((q - 50) / 25 * epoch / EPOCHS)
        made.append(row)
    return made


def drawn(axes, name: str) -> tuple[np.ndarray, np.ndarray]:
    (line,) = [x for x in axes.lines if x.get_label() == name]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def is_saved(figure: Figure) -> bool:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getbuffer().nbytes > 5000
