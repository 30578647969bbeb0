"""Processes of one run, started by the agent of `torchrun`: forks of the test's own, which has everything imported."""

import signal
import uuid

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def run_ranks(function, num_ranks=2):
    """Runs a function in several processes that know each other as those of `torchrun` do.

    Raises:
        ChildFailedError: One of them raised, with what it said.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )

    def run():
        torch.set_num_threads(1)  # threads of the parent do not live on in a forked process
        function()

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    handlers |= {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGQUIT)}
    try:
        elastic_launch(config, run)()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
