"""Samplers that draw by priority and take new priorities, each in its own process.

    python -m examples.benchmarks.scale_contenders NAME EXAMPLES BATCH_SIZE BLOCK

prints "ready", and then, for every number of draws on a line of its input, how many
were made and the processor's seconds they took, updates of the priorities included.
"""

import os
import sys
import time
from collections.abc import Callable

import numpy as np

FLOOR = 0.05  # of ours; the others have none
_SEED = 0


def main() -> None:
    """Serves one contender on one core."""
    name, *numbers = sys.argv[1:]
    examples, batch_size, block_draws = map(int, numbers)
    rng = np.random.default_rng(_SEED)
    norms = rng.lognormal(size=examples).astype(np.float32)
    draw = CONTENDERS[name](norms, batch_size, block_draws)
    draw()
    print("ready", flush=True)
    for line in sys.stdin:
        wanted, done = int(line), 0
        started = time.process_time()
        while done < wanted:
            done += draw()
        print(done, time.process_time() - started, flush=True)


def _planner(norms: np.ndarray, batch_size: int, block_draws: int) -> Callable:
    """Prepares all that RAIS does for a block: features, fit, p, draws, plan."""
    import tensorflow as tf

    from examples.benchmarks import synthetic_planner

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    steps = block_draws // batch_size
    made = synthetic_planner.synthetic(norms, batch_size, _SEED, steps)

    def draw() -> int:
        made.plan_block()
        return made.draws

    for _ in range(3):  # the first plans know of few examples
        draw()
    return draw


def _block_draws(norms: np.ndarray, batch_size: int, block_draws: int) -> Callable:
    """Prepares what the others do, in blocks: p in proportion to the last norms."""
    from keras_osgd.draws import reshuffled

    n, rng = len(norms), np.random.default_rng(_SEED)
    scores, owed = norms.astype(np.float64), np.zeros(len(norms))

    def draw() -> int:
        nonlocal owed
        p = scores * ((1 - FLOOR) / scores.sum()) + FLOOR / n
        index, owed, *_ = reshuffled.reshuffled(owed, p, block_draws, rng)
        scores[index] = norms[index]
        return block_draws

    return draw


def _torchrl_buffer(norms: np.ndarray, batch_size: int, _: int) -> Callable:
    """Prepares TorchRL's buffer as its users have it."""
    import tensordict
    import torch
    from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer

    torch.set_num_threads(1)
    n, norms = len(norms), torch.from_numpy(norms)
    buffer = TensorDictPrioritizedReplayBuffer(
        alpha=1.0,
        beta=1.0,
        storage=LazyTensorStorage(n),
        batch_size=batch_size,
        priority_key="norm",
    )
    rows = tensordict.TensorDict({"row": torch.arange(n), "norm": norms}, [n])
    buffer.extend(rows)
    buffer.update_priority(torch.arange(n), norms)

    def draw() -> int:
        sampled = buffer.sample()
        sampled["norm"] = norms[sampled["row"]]
        buffer.update_tensordict_priority(sampled)
        return batch_size

    return draw


def _torchrl_sampler(norms: np.ndarray, batch_size: int, _: int) -> Callable:
    """Prepares that buffer's sampler, without what is stored."""
    import torch
    from torchrl.data import LazyTensorStorage, PrioritizedSampler

    torch.set_num_threads(1)
    n, norms = len(norms), torch.from_numpy(norms)
    sampler = PrioritizedSampler(n, alpha=1.0, beta=1.0)
    storage = LazyTensorStorage(n)
    storage.set(torch.arange(n), torch.arange(n))
    sampler.extend(torch.arange(n))
    sampler.update_priority(torch.arange(n), norms)

    def draw() -> int:
        index, _ = sampler.sample(storage, batch_size)
        sampler.update_priority(index, norms[index])
        return batch_size

    return draw


def _torchrl_tree(norms: np.ndarray, batch_size: int, _: int) -> Callable:
    """Prepares that sampler's tree, with the least that draws and weighs by it."""
    import torch
    from torchrl._torchrl import SumSegmentTreeFp32

    torch.set_num_threads(1)
    n, norms = len(norms), torch.from_numpy(norms)
    tree = SumSegmentTreeFp32(n)
    tree[torch.arange(n)] = norms

    def draw() -> int:
        total = tree.query(0, n)
        index = tree.scan_lower_bound(torch.rand(batch_size) * total).clamp_max(n - 1)
        _ = total / (n * tree[index])  # the importance weights
        tree[index] = norms[index]
        return batch_size

    return draw


def _cpprb(norms: np.ndarray, batch_size: int, _: int) -> Callable:
    """Prepares cpprb's buffer, which stores a row's number and nothing else."""
    import cpprb

    columns = {"row": {"dtype": np.int64}}
    buffer = cpprb.PrioritizedReplayBuffer(len(norms), columns, alpha=1.0, eps=1e-6)
    buffer.add(row=np.arange(len(norms)), priorities=norms)

    def draw() -> int:
        index = buffer.sample(batch_size, beta=1.0)["indexes"]
        buffer.update_priorities(index, norms[index])
        return batch_size

    return draw


CONTENDERS = {
    "RAIS": _planner,
    "block draws": _block_draws,
    "torchrl buffer": _torchrl_buffer,
    "torchrl sampler": _torchrl_sampler,
    "torchrl tree": _torchrl_tree,
    "cpprb": _cpprb,
}


if __name__ == "__main__":
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    if core is not None:
        os.sched_setaffinity(0, {core})
    main()
