"""What weightclass adds to the start of a program.

    python benchmarks/start_up.py

Prints the median wall time of 7 fresh processes each, taken in turns: `import torch` alone, with weightclass, with all
that training needs, and `weightclass --help`; against the limits of 100 ms more than torch (the median of the
differences within a turn), and 0.5 s for the help.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

STARTS = 7
PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "import torch, weightclass": ["-c", "import torch, weightclass"],
    "import torch, weightclass.run": ["-c", "import torch, weightclass.run"],
    "weightclass --help": ["-m", "weightclass", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    from rich import box
    from rich.table import Table

    from weightclass.runlog import console

    for arguments in PROGRAMS.values():
        seconds(arguments)  # files into the page cache, bytecode written
    rounds = [{name: seconds(arguments) for name, arguments in PROGRAMS.items()} for _ in range(STARTS)]
    medians = {name: statistics.median(each[name] for each in rounds) for name in PROGRAMS}
    more = {name: statistics.median(each[name] - each["import torch"] for each in rounds) for name in PROGRAMS}
    within = {
        "import torch, weightclass": ("under 100 ms more", more["import torch, weightclass"] < 0.1),
        "weightclass --help": ("under 0.5 s", medians["weightclass --help"] < 0.5),
    }
    verdicts = {name: f"{limit}: {'yes' if kept else 'NO'}" for name, (limit, kept) in within.items()}
    grid = Table(box=box.MARKDOWN, title=f"Start-up, median of {STARTS} processes", title_justify="left")
    for column in ("program", "seconds", "more than torch", "limit"):
        grid.add_column(column)
    for name, value in medians.items():
        added = f"{1000 * more[name]:+.0f} ms" if name.startswith("import torch,") else ""
        grid.add_row(name, f"{value:.3f}", added, verdicts.get(name, ""))
    console().print(grid)


if __name__ == "__main__":
    main()
