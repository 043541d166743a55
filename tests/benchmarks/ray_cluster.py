"""A Ray cluster of a head and two workers on this machine; one worker is killed while runs are reduced.

    python tests/benchmarks/ray_cluster.py

Prints what came of it: the answer of one process, or the error that the fit ended with; a second call must then give
the answer. It ends with status 1 where neither came in time.
"""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS.parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
# for head, workers and driver alike; Ray 2.60 would ask some of them for a token, depending on what ran here earlier
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}

import ray  # noqa: E402
from gammapy.data import DataStore  # noqa: E402
from shared import use_folder  # noqa: E402
from stores import IRFS, options, plain_store  # noqa: E402

from gammapy_accmaker import fit_acceptance  # noqa: E402
from gammapy_accmaker.errors import AcceptanceError  # noqa: E402

PORT = 6399
RAY = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1", "--disable-usage-stats"]
REPEAT = 20  # of eight runs
SECONDS = 420  # after which it counts as hanging


def start(*arguments):
    """Start a node; returns its processes, all in a session of their own."""
    node = subprocess.Popen(
        [*RAY, *arguments, "--block"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    return node


def stop(node):
    """Kill a node with all of its processes."""
    try:
        os.killpg(node.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    node.wait()


def fit(observations, n_jobs, cache=None, node=None):
    """Counts of a fit on the cluster, or the error; the node is killed when the first runs are in the cache."""
    if node is not None:
        threading.Thread(target=_kill_in_the_middle, args=(cache, node), daemon=True).start()
    try:
        model = fit_acceptance(observations, options("radial"), n_jobs=n_jobs, parallel_backend="ray", cache=cache)
    except AcceptanceError as error:
        return f"{type(error).__name__}: {error}"[:300]
    return model.rate_model.counts.tolist()


def _kill_in_the_middle(cache, node):
    while len(list(cache.glob("run-*"))) < 2:
        time.sleep(0.02)
    stop(node)
    print(f"killed a worker, {len(list(cache.glob('run-*')))} runs were reduced", flush=True)


def main():
    simulated = tempfile.TemporaryDirectory()
    use_folder(Path(simulated.name))
    data_store = DataStore.from_dir(plain_store().path)
    observations = list(data_store.get_observations(sorted(data_store.obs_table["OBS_ID"]), required_irf=IRFS)) * REPEAT
    alone = fit_acceptance(observations, options("radial")).rate_model.counts.tolist()
    folder = tempfile.TemporaryDirectory()
    # what Ray notes of this cluster goes with it: a later `ray.init()` on this machine would look for it
    nodes, status = [start("--head", f"--port={PORT}", f"--temp-dir={folder.name}/ray")], 1
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("it hangs"))
    signal.alarm(SECONDS)
    cache = Path(folder.name, "cache")
    try:
        time.sleep(12)
        ray.init(address=f"127.0.0.1:{PORT}", log_to_driver=False)
        for _ in range(2):
            nodes.append(start(f"--address=127.0.0.1:{PORT}"))
            for _ in range(60):
                alive = [node for node in ray.nodes() if node["Alive"]]
                if len(alive) == len(nodes):
                    break
                time.sleep(1)
        if len(alive) < 3:
            sys.exit(
                f"the cluster has {len(alive)} nodes and not 3; is the port {PORT} free, and the machine not too busy?"
            )
        print(f"{len(alive)} nodes", flush=True)
        whole = fit(observations, 3)
        print("all nodes alive:", "same answer" if whole == alone else whole, flush=True)
        killed = fit(observations, 3, cache, nodes[-1])
        print("one worker killed:", "same answer" if killed == alone else killed, flush=True)
        time.sleep(15)  # until the head knows
        again = fit(observations, 2, cache)
        print("again, with the rest:", "same answer" if again == alone else again, flush=True)
        status = int(not (whole == alone and (killed == alone or isinstance(killed, str)) and again == alone))
    finally:
        signal.alarm(0)
        ray.shutdown()
        for node in reversed(nodes):
            stop(node)
        folder.cleanup()
    print("good" if status == 0 else "BAD")
    return status


if __name__ == "__main__":
    sys.exit(main())
