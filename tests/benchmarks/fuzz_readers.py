"""Damaged model files, configurations, event tables, event files and cache entries: read or refused, and nothing else.

    python tests/benchmarks/fuzz_readers.py --number 20000 [--kind model] [--start 0]

Every input comes from its number alone; a defect is printed with the number, and the exit status tells of them.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzzing import KINDS, read_damaged  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20000, help="inputs of each kind")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="most time for each kind")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    defects = 0
    for kind in options.kind or KINDS:
        found, start = Counter(), time.monotonic()
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            for number in range(options.start, options.start + options.number):
                try:
                    found[read_damaged(kind, number, Path(folder))] += 1
                except Exception as error:  # the defects that are looked for
                    found["DEFECT"] += 1
                    if found["DEFECT"] <= 5:
                        print(f"{kind} {number}: {type(error).__name__}: {error}")
                        traceback.print_exc(limit=-4)
                if time.monotonic() - start > options.seconds:
                    break
        defects += found["DEFECT"]
        print(
            f"{kind:10s} {sum(found.values()):7d} inputs {time.monotonic() - start:6.0f} s  {dict(found)}", flush=True
        )
    return defects > 0


if __name__ == "__main__":
    sys.exit(main())
