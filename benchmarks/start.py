"""From a command to the first image: imports, and compilation with a cold cache.

    python -m benchmarks.start
    python -m benchmarks.start --model emoji --repeats 5

A line of JSON: medians of the seconds that `import lDM_jax.pipeline` takes (and `import
jax` alone, which is most of it), that `python sample.py --model=emoji --prompt="red
heart" --seeds=0` takes when nothing was compiled before ("cold", one run), and again
("warm"). Each is a process of its own; the last two are timed from their start to their
end. The cache of programs (`lDM_jax/core/startup.py`) is an empty folder of this run's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMPORT = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""


def call(*command: str, home: str) -> tuple[float, str]:
    """(seconds, standard output) of a Python process."""
    environment = {**os.environ, "XDG_CACHE_HOME": home, "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command],
        env=environment,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--prompt", default="red heart")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    line = {"model": options.model}
    with tempfile.TemporaryDirectory() as folder:
        for module in ("jax", "lDM_jax.pipeline"):
            code = IMPORT.format(module)
            runs = [call("-c", code, home=folder) for _ in range(options.repeats)]
            seconds = statistics.median(float(text) for _, text in runs)
            line[f"import_{module}_secs"] = round(seconds, 2)
        flags = f"--model={options.model}", f"--prompt={options.prompt}", "--seeds=0"
        draw = str(ROOT / "sample.py"), *flags, f"--out={folder}/samples"
        line["cold_secs"] = round(call(*draw, home=folder)[0], 2)
        warm = [call(*draw, home=folder)[0] for _ in range(options.repeats)]
        line["warm_secs"] = round(statistics.median(warm), 2)
        line["warm_most_secs"] = round(max(warm), 2)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
