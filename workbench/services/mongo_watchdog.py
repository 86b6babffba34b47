"""Starts a MongoDB and stops it when nobody uses it any more, also where all its users were killed.

``python -m workbench.services.mongo_watchdog FOLDER SOCKET PROGRAM OPTION...`` is a process of its own. If it is killed itself, the system
ends the database for it.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workbench.files import try_lock
from workbench.services.mongo import CHANGE, STOP_SECONDS, USERS
from workbench.services.servers import LOOK_SECONDS, open_lock
from workbench.services.starter import terminate_with_parent


def watch(folder: Path, address: Path, command: Sequence[str]) -> None:
    """Runs the database until it ends or nobody uses it, and prints its process id first.

    Args:
        folder: where the locks of ``mongo.database`` lie. Whoever starts this holds one until the database answers.
        address: socket of the database, which is removed with its folder if that was made for it.
        command: the program with its options.
    """
    os.umask(0o077)
    # this process has one thread and imports nothing in between, so what runs between fork and exec is safe
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              preexec_fn=terminate_with_parent)  # fmt: skip

    def end(number: int, frame: object) -> None:
        server.terminate()

    signal.signal(signal.SIGTERM, end)
    sys.stdout.write(f"{server.pid}\n")
    sys.stdout.flush()
    with open_lock(folder / CHANGE) as change, open_lock(folder / USERS) as users:
        while not _ends_within(server, LOOK_SECONDS):
            # users take both locks in this order; whoever holds one of them is using the database, or about to
            if try_lock(change) and try_lock(users):
                server.terminate()
                if not _ends_within(server, STOP_SECONDS):
                    server.kill()
                    server.wait()
                break
            fcntl.flock(users, fcntl.LOCK_UN)
            fcntl.flock(change, fcntl.LOCK_UN)
        address.unlink(missing_ok=True)
        if address.parent != folder.absolute():
            address.parent.rmdir()


def _ends_within(server: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


if __name__ == "__main__":
    watch(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
