"""Up to a bucket and down again: wanstore's store against s3fs, and boto3's transfers, which `aws s3 cp` is made of.

    python benchmarks/object_store.py [--mb 1000] [--rounds 3] [--s3fs PYTHON]

s3fs is fsspec's client. It needs a botocore of its own, so PYTHON is that of an environment that has it. All talk to
moto's S3 server on 127.0.0.1, one after the other, each in a fresh process, in an order that changes from
round to round. The server is Python and shares the processor: what counts are the ratios, and the CPU seconds of the
client. wanstore also hashes what comes down.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.stores.object.s3 import S3
from wanstore.testing.manifests import seal_as_is

FILES = 4
WAYS = {
    ("wanstore", "up"): """
import sys, wanstore
wanstore.copy("w", sys.argv[1], f"s3://{sys.argv[2]}/wan")
""",
    ("wanstore", "down"): """
import sys, wanstore
wanstore.open_store(f"s3://{sys.argv[2]}/wan").local_path("w")
""",
    ("s3fs", "up"): """
import sys, os, s3fs
from pathlib import Path
fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
fs.put([str(file) for file in Path(sys.argv[1], "w").iterdir()], sys.argv[2] + "/s3fs/")
""",
    ("s3fs", "down"): """
import sys, os, s3fs
fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
fs.get(fs.ls(sys.argv[2] + "/s3fs"), sys.argv[3] + "/")
""",
    ("boto3", "up"): """
import sys, boto3
from pathlib import Path
s3 = boto3.client("s3")
for file in Path(sys.argv[1], "w").iterdir():
    s3.upload_file(str(file), sys.argv[2], "boto/" + file.name)
""",
    ("boto3", "down"): """
import sys, boto3
from pathlib import Path
s3, target = boto3.client("s3"), Path(sys.argv[3])
for one in s3.list_objects_v2(Bucket=sys.argv[2], Prefix="boto/")["Contents"]:
    s3.download_file(sys.argv[2], one["Key"], str(target / Path(one["Key"]).name))
""",
}


def measure(python: str, code: str, arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds, and CPU seconds of the process."""
    began = time.perf_counter()
    process = subprocess.Popen([python, "-c", code, *arguments], env={**os.environ, **environment})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"exit status {process.returncode}")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--s3fs", metavar="PYTHON")
    asked = parser.parse_args()
    pythons = {"wanstore": sys.executable, "boto3": sys.executable, **({"s3fs": asked.s3fs} if asked.s3fs else {})}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {way: [] for way in WAYS if way[0] in pythons}
    with tempfile.TemporaryDirectory() as work, S3() as s3:
        source = Path(work, "source/w")
        source.mkdir(parents=True)
        for number in range(FILES):
            (source / f"{number}.bin").write_bytes(os.urandom(asked.mb * 1_000_000 // FILES))
        seal_as_is(source)
        for number in range(asked.rounds):
            names = list(pythons) if number % 2 else list(reversed(pythons))
            for direction in ("up", "down"):
                for name in names:
                    target = Path(work, "target")
                    shutil.rmtree(target, ignore_errors=True)
                    target.mkdir()
                    environment = {**s3.environment, "WANSTORE_CACHE": str(target)}
                    arguments = [str(source.parent), s3.bucket, str(target)]
                    found[name, direction].append(measure(pythons[name], WAYS[name, direction], arguments, environment))
            for key in s3.sizes():
                s3.client.delete_object(Bucket=s3.bucket, Key=key)
    print("| direction | client | s | MB/s | CPU s a GB |\n| --- | --- | ---: | ---: | ---: |")
    for (name, direction), rows in sorted(found.items(), key=lambda one: one[0][::-1]):
        seconds, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"| {direction} | {name} | {seconds:.1f} | {asked.mb / seconds:.0f} | {cpu / asked.mb * 1000:.2f} |")


if __name__ == "__main__":
    main()
