"""Finds the browser for the tests, or installs Debian's chromium if it has the rights: `.venv/bin/python tools/browser.py`."""

import os
import shutil
import subprocess
import sys

from workbench.services.doctor import HOW_TO_GET_A_BROWSER, find_browser


def main() -> int:
    """Prints the path of the browser. Returns 1 if there is none and it cannot be installed."""
    if find_browser() is None and os.geteuid() == 0 and shutil.which("apt-get"):
        print("[setup] no browser found: installing Debian's chromium", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-qq", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", *command], env=environment, check=False)
    browser = find_browser()
    print(f"[setup] browser: {browser}" if browser else f"[setup] {HOW_TO_GET_A_BROWSER}", flush=True)
    return 0 if browser else 1


if __name__ == "__main__":
    sys.exit(main())
