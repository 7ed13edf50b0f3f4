"""Whether recalibrated statistics are exact, beside the tools that others use, and what that costs.

The exit code is 1 when a bar is missed: bnfold's statistics are those of what comes in, up to the rounding
of float32; they are the same bits however the data come; a recalibration takes at most four plain inference
passes; and without a cache its memory does not grow with the number of images.

    python benchmarks/recalibration.py --only time --images 512 --runs 1
"""

from __future__ import annotations

import argparse
import sys

from exactness import exactness
from options import several_of
from recalibration_cost import memory, seconds

SECTIONS = ("exactness", "time", "memory")


def main() -> int:
    options = _options()
    missed: list[str] = []
    for name in options.only:
        print(name, file=sys.stderr)
        match name:
            case "exactness":
                section = exactness()
            case "time":
                section = seconds(options.images, options.runs)
            case _:
                section = memory(options.images)
        print(f"{section.show()}\n", flush=True)
        missed += section.missed
    print("## Bars\n")
    print("\n".join(f"- {line}" for line in missed) or "- all met")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--only", type=several_of(SECTIONS), default=SECTIONS, help=f"of {','.join(SECTIONS)}"
    )
    parser.add_argument("--images", type=int, default=1024, help="for time and memory (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of each that is timed (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
