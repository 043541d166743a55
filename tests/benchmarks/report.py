"""One table, asked against reached: each of our times beside the other tool's, measured in one run.

Each measurement has a process of its own with one thread, and ours are taken before and after the other tool's.
Ratios of one core are of time on the processor, which other work on the machine disturbs least; with all cores, which
BAccMod cannot use, the elapsed times are compared, so the machine must be idle::

    export GAMMAPY_DATA=... ACCMAKER_BACCMOD_PYTHON=/tmp/venv-baccmod/bin/python   # see baccmod_reference.py
    python tests/benchmarks/report.py                   # all cases; BAccMod's grids take most of an hour
    python tests/benchmarks/report.py radial background
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from measures import DR1, EXCLUSION

HERE = Path(__file__).parent
# case: model, bins from centre to edge, how many times faster is asked
FITS = {"radial": ("radial", 12, 5), "grid12": ("grid", 6, 100), "grid24": ("grid", 12, 100)}
BACKGROUND_ASKED = 20
AGREEMENT_ASKED = 0.003


def run_alone(python, script, *args):
    """What a script prints as JSON, run with one thread."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [str(python), str(HERE / script), *map(str, args)]
    done = subprocess.run(command, env=os.environ | one_thread, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def baccmod_python():
    """Python of the environment that has BAccMod, or None."""
    return os.environ.get("ACCMAKER_BACCMOD_PYTHON")


def run_ours(model, offset_bins, n_jobs=1):
    return run_alone(sys.executable, "measures.py", "fit", model, "--offset-bins", offset_bins, "--n-jobs", n_jobs)


def run_baccmod(model, offset_bins):
    arguments = ["--offset-bins", offset_bins, "--data", DR1, "--exclusion", EXCLUSION]
    return run_alone(baccmod_python(), "baccmod_reference.py", model, *arguments)


def compare_fit(case):
    """Our fit beside BAccMod's, and how many times faster it is."""
    model, offset_bins, asked = FITS[case]
    before = run_ours(model, offset_bins), run_ours(model, offset_bins, os.cpu_count())
    other = run_baccmod(model, offset_bins)
    after = run_ours(model, offset_bins), run_ours(model, offset_bins, os.cpu_count())
    one_core, all_cores = (_mean(*pair) for pair in zip(before, after, strict=True))
    return {
        "case": case,
        "asked": asked,
        "ratio": other["cpu_seconds"] / one_core["cpu_seconds"],
        "ratio_all_cores": other["seconds"] / all_cores["seconds"],
        "ours": one_core,
        "ours_all_cores": all_cores,
        "other": other,
    }


def _mean(first, second):
    return first | {key: (first[key] + second[key]) / 2 for key in ("seconds", "cpu_seconds", "peak_mb")}


def compare_background():
    """Our background map beside gammapy's, with the same model."""
    result = run_alone(sys.executable, "measures.py", "background")
    return {"case": "background", "asked": BACKGROUND_ASKED, **result}


def rows_of_fit(result):
    ours, other = result["ours"], result["other"]
    name = f"fit {ours['model']} {' x '.join(map(str, other['shape']))}, {ours['runs']} runs"
    asked = f">= {result['asked']}x"
    times = (f"{side['cpu_seconds']:.1f} s, {side['peak_mb']:.0f} MB" for side in (ours, other))
    yield f"{name}, one core", asked, f"{result['ratio']:.1f}x", *times
    times = (f"{side['seconds']:.1f} s, {side['peak_mb']:.0f} MB" for side in (result["ours_all_cores"], other))
    yield "  all cores, elapsed", asked, f"{result['ratio_all_cores']:.1f}x", *times


def rows_of_background(result):
    ours, other = result["ours"], result["gammapy"]
    for key, name in {"first": "first call", "next": "later calls"}.items():
        ratio = other[key] / ours[key]
        yield (
            f"make_background, {name}",
            f">= {result['asked']}x",
            f"{ratio:.1f}x",
            f"{ours[key]:.3f} s",
            f"{other[key]:.2f} s",
        )
    for key, name in {
        "energy_bin_ratio": "gammapy's default",
        "energy_bin_ratio_oversampled": "gammapy oversampled",
    }.items():
        largest = max(abs(ratio - 1) for ratio in result[key])
        yield f"  largest difference in an energy bin, {name}", f"<= {AGREEMENT_ASKED:.1%}", f"{largest:.2%}", "", ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"of {[*FITS, 'background']}; default: all")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    args = parser.parse_args()
    cases = args.cases or [*FITS, "background"]
    if unknown := set(cases) - {*FITS, "background"}:
        parser.error(f"there is no case {', '.join(sorted(unknown))}; choose from {', '.join([*FITS, 'background'])}")
    if set(cases) & set(FITS) and baccmod_python() is None:
        parser.error(
            "ACCMAKER_BACCMOD_PYTHON must name the python of an environment with BAccMod: see baccmod_reference.py"
        )

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    line = "{:<58} {:>8} {:>8}  {:<18} {}"
    print(line.format("what", "asked", "reached", "ours", "other"), flush=True)
    results = []
    for case in cases:
        results.append(compare_background() if case == "background" else compare_fit(case))
        rows = rows_of_background if case == "background" else rows_of_fit
        for row in rows(results[-1]):
            print(line.format(*row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
