"""Programs of several processes on this machine, as tests start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(*command: str, **environment: str) -> None:
    """Run a module of Python with arguments, on one thread; its processes end with it, or after four minutes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = (sys.executable, "-m", *command)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        try:
            _, errors = launcher.communicate(timeout=240)
        finally:
            launcher.terminate()  # the launcher ends its processes
    assert launcher.returncode == 0, errors[-4000:]


def launch_two(script: str, *arguments: str | Path) -> None:
    """Run a script in two processes that know of each other."""
    port = f"--master_port={free_port()}"
    launch("torch.distributed.run", "--nproc_per_node=2", port, script, *map(str, arguments))


def end_together() -> None:
    """End a process of several, when all have come so far."""
    import torch.distributed  # the other tests that launch processes need no torch

    torch.distributed.barrier()
    # Not destroy_process_group(): gloo's threads and the interpreter then sometimes wait for each other for ever.
    os._exit(0)


def outputs_by_hash_seed(code: str) -> tuple[str, str]:
    """What a program prints in two processes whose sets and dictionaries are in another order."""
    first, second = (
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    return first, second
