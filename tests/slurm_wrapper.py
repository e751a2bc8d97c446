#!/usr/bin/env -S python3 -S -E
"""Stands for one of Slurm's commands, first on PATH: calls the real one, and bends its answer.

`slurm_fixtures.BentSlurm` links this file under the commands' names, and writes `bends.json` beside
the folder of links: what to bend, read anew at each call. Every call is told in `calls.jsonl`.
"""

import json
import os
import re
import subprocess
import sys
import time

BIN = os.path.dirname(os.path.abspath(sys.argv[0]))
COMMAND = os.path.basename(sys.argv[0])
HOME = os.path.dirname(BIN)
LOST_REPLY = "Batch job submission failed: Socket timed out on send/recv operation"
TOO_MANY = (
    "AssocMaxSubmitJobLimit\n{c}: error: Batch job submission failed: Job violates accounting/QOS "
    "policy (job submit limit, user's size and/or time limits)"
)
NOT_HERE = "Batch job submission failed: Access/permission denied"


def _started_at():
    """Return when this process was started, however long Python took to come up (proc(5))."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
        age_s = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


class Call:
    """One call of one command."""

    def __init__(self, args):
        self.args = args
        with open(f"{HOME}/bends.json") as file:
            self.bends = json.load(file)
        self.told = {"at": _started_at(), "command": COMMAND, "args": args, "bent": None}
        self.told["inside"] = _inside_a_job()
        self.script = self._script() if COMMAND == "sbatch" else ""
        self.stdin = self.script if COMMAND == "sbatch" and self._file() is None else None

    def answer(self):
        """Return exit code, output and error text."""
        time.sleep(self.bends.get("slow_s", {}).get(COMMAND, 0))
        if COMMAND == "sbatch":
            return self._sbatch()
        rc, out, err = self._real()
        if COMMAND == "sacct" and time.time() < self.bends.get("sacct_empty_until", 0):
            return self._bent("sacct_empty", 0, "", "")
        if COMMAND in ("sacct", "squeue") and "out_of_memory" in self.bends:
            out = self._out_of_memory(out)
        for pattern, by in self.bends.get("replace", {}).get(COMMAND, {}).items():
            out = re.sub(pattern, by, out, flags=re.MULTILINE)
        if self.bends.get("no_accounting") and self.args[:2] == ["show", "config"]:
            out = out.replace("accounting_storage/slurmdbd", "accounting_storage/none")
        return rc, out, err

    def tell(self, rc):
        """Add this call to the log: one write, so that lines of several calls do not mix."""
        line = json.dumps({**self.told, "rc": rc}) + "\n"
        fd = os.open(f"{HOME}/calls.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, line.encode())
        os.close(fd)

    def _sbatch(self):
        if self.bends.get("refuse_on_nodes") and _inside_a_job():
            return self._refused("refuse_on_nodes", NOT_HERE)
        if {"--version", "-V", "--test-only", "--help"} & set(self.args):
            return self._real()
        if self._one_of("refuse_submissions"):
            return self._refused("refuse_submissions", LOST_REPLY)
        limit = self.bends.get("submit_limit")
        if limit is not None and self._exceeds(limit, self.bends.get("limit_counts", "")):
            return self._refused("submit_limit", TOO_MANY.format(c=COMMAND))
        rc, out, err = self._real()
        number = re.search(r"(\d+)", out)
        self.told["job"] = number.group(1) if rc == 0 and number else None
        self.told["name"] = self._option("job-name", "J")
        if rc == 0 and self._one_of("lose_replies"):
            return self._refused("lose_replies", LOST_REPLY)
        return rc, out, err

    def _exceeds(self, limit, counted):
        if not re.search(counted, self._option("job-name", "J") or ""):
            return False
        return _queued(counted) + _elements(self._option("array")) > limit

    def _refused(self, bend, words):
        return self._bent(bend, 1, "", f"{COMMAND}: error: {words}\n")

    def _bent(self, bend, rc, out, err):
        self.told["bent"] = bend
        return rc, out, err

    def _one_of(self, bend):
        """Return whether one of the number of times that `bend` is to happen is left; take it."""
        for number in range(self.bends.get(bend, 0)):
            try:
                os.mkdir(f"{HOME}/{bend}.{self.bends['serial']}.{number}")
            except FileExistsError:
                continue
            return True
        return False

    def _real(self):
        environment = dict(os.environ)
        for bend in ("controller_away", "database_away", "no_accounting"):
            if self.bends.get(bend):
                self.told["bent"] = bend
                environment["SLURM_CONF"] = f"{HOME}/{bend}.conf"
        stdin = self.stdin.encode() if self.stdin is not None else None
        done = subprocess.run(
            [_real_command(), *self.args],
            env=environment,
            input=stdin,
            stdin=None if stdin is not None else sys.stdin,
            capture_output=True,
        )
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def _out_of_memory(self, out):
        """Return `out` with FAILED replaced, in the lines of the jobs that are meant."""
        meant = re.compile(self.bends["out_of_memory"])
        with open(f"{HOME}/calls.jsonl") as file:
            calls = [json.loads(line) for line in file]
        jobs = {c["job"] for c in calls if c.get("job") and meant.search(c.get("name") or "")}
        lines = []
        for line in out.splitlines(keepends=True):
            number = re.search(r"\d+", line)
            if number and number.group() in jobs and re.search(r"\bFAILED\b", line):
                line = re.sub(r"\bFAILED\b", "OUT_OF_MEMORY", line)
                self.told["bent"] = "out_of_memory"
            lines.append(line)
        return "".join(lines)

    def _file(self):
        return next((a for a in self.args if not a.startswith("-") and os.path.isfile(a)), None)

    def _script(self):
        file = self._file()
        if file is not None:
            with open(file, errors="replace") as stream:
                return stream.read()
        wrapped = any(a == "--wrap" or a.startswith("--wrap=") for a in self.args)
        return "" if wrapped or sys.stdin is None or sys.stdin.isatty() else sys.stdin.read()

    def _option(self, name, letter=None):
        """Return the value of an option of sbatch, from its arguments or from the script."""
        for place, arg in enumerate(self.args):
            if arg.startswith(f"--{name}="):
                return arg.partition("=")[2]
            if arg in (f"--{name}", f"-{letter}"):
                return self.args[place + 1]
        found = re.search(rf"^#SBATCH\s+--{name}[= ](.+)$", self.script, re.MULTILINE)
        return found.group(1).strip().strip("\"'") if found else None


def _elements(array):
    """Return how many jobs `--array=ARRAY` makes; one without."""
    if array is None:
        return 1
    count = 0
    for part in array.partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        count += len(range(int(first), int(last or first) + 1, int(step or 1)))
    return count


def _queued(pattern):
    """Return how many jobs and elements of ours are queued whose names match."""
    me = str(os.getuid())
    done = subprocess.run(
        [_real_command("squeue"), "-h", "-r", "-u", me, "-o", "%j"], stdout=subprocess.PIPE
    )
    return sum(1 for name in done.stdout.decode().split() if re.search(pattern, name))


def _inside_a_job():
    """Return whether slurmstepd is among our ancestors; what SLURM_… says may have been removed."""
    pid = os.getpid()
    while pid > 1:
        with open(f"/proc/{pid}/stat") as file:
            name, _, rest = file.read().rpartition(") ")
        if "slurmstepd" in name:
            return True
        pid = int(rest.split()[1])
    return False


def _real_command(name=COMMAND):
    for folder in os.environ["PATH"].split(os.pathsep):
        path = os.path.join(folder, name)
        if os.path.isfile(path) and not os.path.islink(path) and os.access(path, os.X_OK):
            return path
        if os.path.islink(path) and os.path.realpath(path) != os.path.realpath(__file__):
            return path
    sys.exit(f"{name}: no such command behind its wrapper")


def main():
    """Answer as the real command does, bent."""
    call = Call(sys.argv[1:])
    rc, out, err = call.answer()
    call.tell(rc)
    sys.stdout.write(out)
    sys.stderr.write(err)
    sys.exit(rc)


main()
