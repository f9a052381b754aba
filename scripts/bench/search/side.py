"""Command line of a side: replays of problems, written as JSON.

    python SIDE.py METHOD PROBLEMS OUT --seeds 0:50

PROBLEMS are files of `Problem.save`, of which seed s takes the s-th, in turn. A replay is a list of pieces. A seed that
is in OUT already is not replayed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import astuple
from pathlib import Path

import numpy as np
from replay import Piece
from table import Problem

Method = Callable[[Problem, int], list[Piece]]
"""Returns the replay of a problem with a seed."""


def main(methods: Mapping[str, Method]) -> None:
    """Replay one of some methods."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=methods)
    parser.add_argument("problems", nargs="+", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", default="0:50", help="from:to")
    options = parser.parse_args()
    own = [Problem.load(file) for file in options.problems]
    first, end = map(int, options.seeds.split(":"))
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {json.loads(line)["seed"] for line in lines}
    with options.out.open("a") as stream:
        for seed in range(first, end):
            if seed in done:
                continue
            random.seed(seed)
            np.random.seed(seed)
            begin = time.process_time()
            pieces = methods[options.method](own[seed % len(own)], seed)
            spent = time.process_time() - begin
            line = {"seed": seed, "cpu": round(spent, 3), "pieces": [astuple(piece) for piece in pieces]}
            stream.write(json.dumps(line) + os.linesep)
            stream.flush()
