"""A Ray cluster of a head and two workers on this machine; one worker is killed while runs are reduced.

    python tests/benchmarks/ray_cluster.py [--kill-after SECONDS]

Prints what came of it: the answer of one process, or the error that the fit ended with; a second call must then give
the answer. It ends with status 1 where neither came in time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))
sys.path.insert(0, str(TESTS.parent))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])

PORT = 6399
RAY = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus=1", "--disable-usage-stats"]
REPEAT = 30  # of four runs: work for long enough that a worker is killed in the middle of it
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


def fit(obs_ids, n_jobs, kill_after=None, nodes=()):
    """Counts of a fit on the cluster, or the name of the error."""
    from gammapy.data import DataStore
    from stores import IRFS, options, plain_store

    from gammapy_accmaker import fit_acceptance
    from gammapy_accmaker.errors import AcceptanceError

    store = DataStore.from_dir(plain_store().path)
    observations = list(store.get_observations(obs_ids, required_irf=IRFS)) * REPEAT
    if kill_after is not None:
        threading.Timer(kill_after, stop, args=nodes[-1:]).start()
    try:
        model = fit_acceptance(observations, options("radial"), n_jobs=n_jobs, parallel_backend="ray")
    except AcceptanceError as error:
        return f"{type(error).__name__}: {error}"[:300]
    return model.rate_model.counts.tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kill-after", type=float, default=6.0, help="seconds after the fit began")
    options_ = parser.parse_args()
    import ray
    from gammapy.data import DataStore
    from stores import IRFS, options, plain_store

    from gammapy_accmaker import fit_acceptance

    store = plain_store()
    obs_ids = sorted(store.on_obs_ids)
    alone = fit_acceptance(
        list(DataStore.from_dir(store.path).get_observations(obs_ids, required_irf=IRFS)) * REPEAT, options("radial")
    ).rate_model.counts.tolist()
    nodes = [start("--head", f"--port={PORT}")]
    status = 1
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("it hangs"))
    signal.alarm(SECONDS)
    try:
        time.sleep(12)
        nodes += [start(f"--address=127.0.0.1:{PORT}") for _ in range(2)]
        ray.init(address=f"127.0.0.1:{PORT}", log_to_driver=False)
        for _ in range(60):
            alive = [n for n in ray.nodes() if n["Alive"]]
            if len(alive) == 3:
                break
            time.sleep(1)
        print(f"{len(alive)} nodes", flush=True)
        whole = fit(obs_ids, 3)
        print("all nodes alive:", "same answer" if whole == alone else whole, flush=True)
        killed = fit(obs_ids, 3, options_.kill_after, nodes)
        print("one worker killed:", "same answer" if killed == alone else killed, flush=True)
        again = fit(obs_ids, 2)
        print("again, with the rest:", "same answer" if again == alone else again, flush=True)
        status = int(not (whole == alone and (killed == alone or isinstance(killed, str)) and again == alone))
    finally:
        signal.alarm(0)
        ray.shutdown()
        for node in reversed(nodes):
            stop(node)
    print(json.dumps({"ok": status == 0}))
    return status


if __name__ == "__main__":
    sys.exit(main())
