"""The same tasks on Ray Data, for folders past one machine. The folders of the job must be the same on all of them."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from loractl.errors import InputError

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 16  # tasks that Ray hands out, and repeats, together
RETRIES = 1  # of a block whose worker has died; Ray itself would never give up


def on_ray(work: Callable[[T], R], tasks: Sequence[T], alone: Callable[[T], R]) -> Iterator[R]:
    """The results, as they come, from the cluster that Ray finds or a local one. The tasks of a block that Ray gives up
    are done `alone`.
    """
    data = _ray_data()
    context = data.DataContext.get_current()
    context.max_errored_blocks, context.enable_progress_bars = -1, False
    packed = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]

    def carry_out(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "result": pickle.dumps(work(pickle.loads(row["task"])))}

    missing = dict(enumerate(tasks))
    if packed:
        blocks = data.from_items(packed, override_num_blocks=-(-len(packed) // BLOCK))
        for row in blocks.map(carry_out, max_retries=RETRIES).iter_rows():
            del missing[row["number"]]
            yield pickle.loads(row["result"])
    for task in missing.values():
        yield alone(task)


def _ray_data() -> Any:
    try:
        import ray.data
    except ImportError:
        raise InputError('run.executor = "ray" needs Ray: pip install "loractl[ray]"') from None
    return ray.data
