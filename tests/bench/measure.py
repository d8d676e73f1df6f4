"""CPU and memory of processes and of the machine, and the conditions that a measurement needs."""
import contextlib
import os
import subprocess
import time

import topology

TICKS = os.sysconf("SC_CLK_TCK")
CPUS = sorted(os.sched_getaffinity(0))


def read(path):
    with open(path) as file:
        return file.read()


def machine_cpu():
    """Seconds of the whole machine. `nice` is left out: it is the spinners'."""
    user, _nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in read("/proc/stat").split("\n", 1)[0].split()[1:9])
    return {"busy": (user + system + irq + softirq) / TICKS, "steal": steal / TICKS}


def stat_fields(pid):
    """/proc/PID/stat after the command's name, which may hold spaces and parentheses."""
    return read(f"/proc/{pid}/stat").rsplit(")", 1)[1].split()


def process_cpu(pid):
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def rss_mb(pids):
    lines = (line for pid in pids for line in read(f"/proc/{pid}/status").splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def available_mb():
    lines = (line.split() for line in read("/proc/meminfo").splitlines())
    return next(int(line[1]) for line in lines if line[0] == "MemAvailable:") / 1024


def with_descendants(pids):
    children = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                children.setdefault(int(stat_fields(entry)[1]), []).append(int(entry))
            except (OSError, IndexError):
                pass  # it ended meanwhile
    found, waiting = [], list(pids)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


class Meter:
    """CPU over a with-block.

    proxy: of the SUT's processes. all: of client, servers and proxies; the fair figure when a SUT does its work in
    the kernel, since softirq work is charged to these processes. machine: everything, other jobs included."""

    def __init__(self, proxies, servers):
        self.proxies, self.servers = proxies, servers

    def __enter__(self):
        self.started = machine_cpu()
        self.proxies_before = {name: process_cpu(pid) for name, pid in self.proxies.items()}
        self.servers_before = {pid: process_cpu(pid) for pid in self.servers}
        self.clients_before = self.client_cpu()
        return self

    def __exit__(self, *_):
        self.machine = machine_cpu()["busy"] - self.started["busy"]
        self.by_proxy = {name: process_cpu(pid) - self.proxies_before[name] for name, pid in self.proxies.items()}
        self.proxy = sum(self.by_proxy.values())
        servers = sum(process_cpu(pid) - before for pid, before in self.servers_before.items())
        self.all = self.client_cpu() - self.clients_before + servers + self.proxy

    @staticmethod
    def client_cpu():
        times = os.times()
        return times.children_user + times.children_system

    def per(self, metrics, name, unit, amount):
        """Adds the CPU for each unit, e.g. per_gb."""
        for who, spent in (("proxy", self.proxy), ("all", self.all), ("machine", self.machine)):
            metrics[f"{name}_{who}_cpu_per_{unit}"] = spent / amount


class NodeCpus:
    """Gives each of the two nodes half of the CPUs, as if it were a machine: clients are on node a, servers on node b.

    Only once everything runs: a proxy that finds fewer CPUs when it starts has fewer threads."""

    def __init__(self, wanted, proxies, servers):
        self.wanted = wanted
        half = len(CPUS) // 2
        self.of_clients, of_servers = CPUS[:half], CPUS[half:]
        self.of_others = {pid: self.of_clients if name.endswith("-a") else of_servers for name, pid in proxies.items()}
        self.of_others.update({pid: of_servers for pid in servers})

    def __enter__(self):
        if not self.wanted:
            return
        for pid, cpus in self.of_others.items():
            for thread in os.listdir(f"/proc/{pid}/task"):
                # A thread may have ended meanwhile.
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread), cpus)
        # What we start from here on inherits this.
        os.sched_setaffinity(0, self.of_clients)

    def __exit__(self, *_):
        os.sched_setaffinity(0, CPUS)


def trace_events():
    """The kernel's trace events that somebody has switched on, in so far as it shows: they cost time even while nothing
    is recorded, those of system calls most."""
    try:
        return read("/sys/kernel/tracing/set_event").split()
    except OSError:
        return []


class AwakeCpus:
    """Keeps every CPU from halting, by SCHED_IDLE spinners, while one request is in flight.

    In a VM, waking a halted CPU costs tens of microseconds and makes ping-pong bimodal, so that a *busy* machine
    looks faster. Ordinary tasks preempt the spinners at once. Off in all other tests: virtual CPUs that are SMT
    siblings slow each other down."""

    enabled = True

    def __init__(self, wanted=True):
        self.wanted = wanted
        self.spinners = []

    def __enter__(self):
        if self.enabled and self.wanted:
            self.spinners = [subprocess.Popen([topology.MBLOAD, "spin", "-c", str(cpu), "-t", "60"]) for cpu in CPUS]
            time.sleep(0.05)

    def __exit__(self, *_):
        for spinner in self.spinners:
            spinner.kill()
            spinner.wait()


def others_share(patience, threshold=0.10):
    """The part of the machine that others use now; waits up to `patience` seconds until it is below the threshold."""
    end = time.monotonic() + patience
    while True:
        before, started = machine_cpu()["busy"], time.monotonic()
        time.sleep(0.4)
        share = (machine_cpu()["busy"] - before) / ((time.monotonic() - started) * os.cpu_count())
        if share < threshold or time.monotonic() >= end:
            return round(share, 3)
