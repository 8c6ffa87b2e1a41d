"""Fetches a Debian kernel for the guest of tests/test_numa.py, and prints where it is:

    export $(python tests/numa/fetch_kernel.py)

It comes with apt-get from the machine's own package sources, without being installed, into the
user's cache directory, once. The cloud flavour has drivers for its disk built in.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "linux-image-cloud-amd64"
ENGLISH = {**os.environ, "LC_ALL": "C"}


def say(command: list[str], folder: str) -> str:
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, env=ENGLISH
    ).stdout


def fetch(to: Path) -> None:
    """Puts the kernel of the newest package at `to`, whole or not at all."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        real = re.search(r"Depends: (linux-image-\S+)", say(["apt-cache", "depends", PACKAGE], "."))
        if real is None:
            raise FileNotFoundError(f"{PACKAGE} names no package with a kernel")
        print(f"fetching {real[1]} with apt-get", file=sys.stderr, flush=True)
        say(["apt-get", "--quiet", "download", real[1]], scratch)
        (package,) = Path(scratch).glob("*.deb")
        unpacking = ["dpkg-deb", "--fsys-tarfile", str(package)]
        with (
            # It complains when we stop reading.
            subprocess.Popen(
                unpacking, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as unpacked,
            tarfile.open(fileobj=unpacked.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if Path(member.name).name.startswith("vmlinuz-"):
                    kernel = archive.extractfile(member)
                    assert kernel is not None
                    whole = Path(scratch, "vmlinuz")
                    whole.write_bytes(kernel.read())
                    whole.replace(to)
                    return
    raise FileNotFoundError(f"{real[1]} holds no kernel")


def main() -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mmrt")
    kernel = cache / "vmlinuz-cloud-amd64"
    if not kernel.is_file():
        try:
            fetch(kernel)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"cannot fetch a kernel: {error}")
    print(f"MMRT_TEST_KERNEL={kernel}")


if __name__ == "__main__":
    main()
