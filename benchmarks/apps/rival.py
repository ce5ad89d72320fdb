"""A program on something else than dsm: ``python -m benchmarks.apps.rival MODULE FUNCTION [ORDER]``.

Without an order it takes one a line. An answer is the number of seconds that the program itself has measured.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import numpy as np


def main() -> None:
    """Obey."""
    module, function, *orders = sys.argv[1:]
    if module.endswith("_ray"):
        _start_ray()
    program: Any = getattr(import_module(f"benchmarks.apps.{module}"), function)
    if not orders:
        print("{}", flush=True)
    for line in orders or sys.stdin:
        (order,) = json.loads(line)
        took, result = program(**order["sizes"])
        if result is not None:  # of many processes, one has it
            np.save(order["result"], result)
            print(json.dumps({"seconds": took}), flush=True)


def _start_ray() -> None:
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")


if __name__ == "__main__":
    main()
