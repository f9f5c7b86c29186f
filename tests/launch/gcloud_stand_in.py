"""A stand-in of gcloud: records its calls, plays back states of a queued resource, and runs what is sent to workers.

It knows the flags of the Google Cloud CLI 500 and refuses others. Its folder, $GCLOUD_STAND_IN, holds

    states       what `describe` answers, one line a call; the last one again and again
    training.N   what the N-th training on each worker does, lines WORKER:STATUS, the status to end with or "hang"
    calls        what it was called with, one JSON list a line
    WORKER/      home and memory of a worker, gone when the resource is deleted; of its trainings, WORKER.starts stays
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["GCLOUD_STAND_IN"])
WORKERS = 2
FLAGS = {
    "queued-resources create": "zone project accelerator-type runtime-version node-id node-count node-prefix spot",
    "queued-resources describe": "zone project format",
    "queued-resources delete": "zone project force quiet",
    "tpu-vm scp": "zone project worker",
    "tpu-vm ssh": "zone project worker command",
}

PYTHON = """#!/bin/bash
[[ "$*" == *"uv venv"* ]] && mkdir -p .venv/bin && cp "$GCLOUD_STAND_IN/training" .venv/bin/diffusion-jax
exit 0
"""

# Unpacking a whole clone is not what is tested.
TAR = """#!/bin/bash
[[ -s diffusion_jax.tar.gz ]]
"""

TRAINING = """#!/bin/bash
worker=$(basename "$HOME" .home)
echo "$*" >>"$GCLOUD_STAND_IN/$worker.starts"
number=$(wc -l <"$GCLOUD_STAND_IN/$worker.starts")
does=$(sed -n "s/^$worker://p" "$GCLOUD_STAND_IN/training.$number")
echo "training $number of $worker: $does"
[[ $does == hang ]] && exec sleep 1000
exit "$does"
"""


def main() -> None:
    """Answers one call."""
    words = sys.argv[1:]
    with open(FOLDER / "calls", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    assert words[:2] == ["compute", "tpus"], words
    verb, rest = " ".join(words[2:4]), words[4:]
    flags = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
    unknown = flags.keys() - set(FLAGS[verb].split())
    if unknown:
        sys.exit(f"ERROR: unrecognized arguments: {unknown}")
    names = [word for word in rest if not word.startswith("--")]
    {"describe": describe, "delete": delete, "create": create, "scp": copy, "ssh": run}[verb.split()[1]](names, flags)


def describe(names, flags):
    states = (FOLDER / "states").read_text().split()
    if len(states) > 1:
        (FOLDER / "states").write_text("\n".join(states[1:]))
    if states[0] == "NONE":
        sys.exit(
            f"ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource '{names[0]}' was not found"
        )
    print(states[0])


def create(names, flags):
    assert ("node-id" in flags) != ("node-count" in flags)


def delete(names, flags):
    assert "force" in flags and "quiet" in flags
    for pid in FOLDER.glob("*.home/shm/*/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)
    for worker in FOLDER.glob("*.home"):
        shutil.rmtree(worker)


def homes(node, flags):
    assert flags["worker"] == "all"
    for number in range(WORKERS):
        home = FOLDER / f"{node}.{number}.home"
        (home / "shm").mkdir(parents=True, exist_ok=True)
        yield home


def copy(names, flags):
    node, _, target = names[1].partition(":")
    for home in homes(node, flags):
        shutil.copy(names[0], home / target)


def run(names, flags):
    tools = FOLDER / "tools"
    tools.mkdir(exist_ok=True)
    for path, text in ((tools / "python3", PYTHON), (tools / "tar", TAR), (FOLDER / "training", TRAINING)):
        path.write_text(text)
        path.chmod(0o755)
    for home in homes(names[0], flags):
        environment = {**os.environ, "HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
        command = flags["command"].replace("/dev/shm", str(home / "shm"))
        subprocess.run(["bash", "-c", command], cwd=home, env=environment, check=True)


if __name__ == "__main__":
    main()
