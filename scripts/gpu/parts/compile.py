"""Compiles the models of the step table, so that they are in the compiler's cache when their steps are timed."""

from __future__ import annotations

from itertools import islice
from time import perf_counter

from part import NEEDS_CUDA, Part, run

from catalog import WORKS


def main(part: Part) -> None:
    if not part.cuda:
        for key in WORKS:
            part.put("compile", key, missing=NEEDS_CUDA)
        return
    import by_hand
    from timing import synchronizer

    from parts.steps import works

    for key, work in works(part).items():
        begin = perf_counter()
        for _ in islice(by_hand.compiled(work, key != "mlp"), 3):
            synchronizer(part)()
        part.put("compile", key, found=f"{perf_counter() - begin:.1f}")


if __name__ == "__main__":
    run(main)
