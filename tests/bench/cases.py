"""What is measured in a cell. Each case adds to a flat dictionary of metrics; report.py knows their names."""
import json
import os
import subprocess
import sys
import time

import measure
import topology

MARKER = "SLUICE-BENCH-PLAINTEXT"


class Cell:
    """One SUT in one scope: where its server is, whose CPU counts, and the figures so far."""

    def __init__(self, sut, scope, servers):
        pod = topology.PODS["server" if scope == "cross" else "local"]
        self.scope, self.ip, self.cold_addresses = scope, pod["ip"], pod["cold"]
        self.proxies, self.servers = sut.pids(), servers
        self.metrics = {}

    def meter(self):
        return measure.Meter(self.proxies, self.servers)

    def proxy_rss(self):
        return measure.rss_mb(self.proxies.values()) if self.proxies else None


def client(argv, timeout=60):
    netns = topology.pod_netns("client")
    return subprocess.run(topology.inside(netns, [str(word) for word in argv]), capture_output=True, text=True, timeout=timeout)


def mbload(*argv):
    done = client((topology.MBLOAD,) + argv)
    if not done.stdout.strip():
        raise RuntimeError(f"mbload {argv}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def plaintext_on_the_wire(cell):
    """Whether an HTTP header is readable between the nodes or, on one node, on the client's veth."""
    device = "ab" if cell.scope == "cross" else "v-client"
    sniffer = os.path.join(topology.HERE, "sniff.py")
    argv = topology.inside(topology.node_netns("a"), [sys.executable, sniffer, device, "0.6", MARKER])
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        url = f"http://{cell.ip}:{topology.HTTP_PORT}/"
        answer = client(["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", "X-Marker: " + MARKER, url], 10)
        seen = json.loads(process.stdout.readline())
    if answer.stdout.strip() != "200":
        raise RuntimeError(f"the request through the mesh got HTTP {answer.stdout!r}")
    if not seen["frames"]:
        raise RuntimeError(f"no frame was seen on {device}: the check says nothing")
    return seen


def first_connection(cell):
    cell.metrics["first_ever_us"] = mbload("cold", "-A", cell.ip, "-p", topology.ECHO_PORT)["first_us"]


def memory(cell, _arguments):
    cell.metrics["rss_idle_mb"] = cell.proxy_rss()
    for count in (1000, 5000):
        before = measure.available_mb()
        argv = [topology.MBLOAD, "idle", "-a", cell.ip, "-p", topology.ECHO_PORT, "-P", topology.ECHO_PORTS, "-n", count]
        argv = topology.inside(topology.pod_netns("client"), [str(word) for word in argv])
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            opened = json.loads(process.stdout.readline())
            time.sleep(0.3)
            cell.metrics[f"rss_{count}_mb"] = cell.proxy_rss()
            cell.metrics[f"mem_used_{count}_mb"] = before - measure.available_mb()
            cell.metrics[f"idle_{count}_errors"] = opened["errors"]
            process.stdin.write("\n")
            process.stdin.flush()
            cell.metrics[f"idle_{count}_lost"] = opened["opened"] - json.loads(process.stdout.readline())["alive"]
    time.sleep(2)
    cell.metrics["rss_after_mb"] = cell.proxy_rss()


def cold(cell, _arguments):
    with measure.AwakeCpus():
        result = mbload("cold", "-A", ",".join(cell.cold_addresses), "-p", topology.ECHO_PORT)
    for quantile in ("p50", "p90", "max"):
        cell.metrics[f"cold_{quantile}_us"] = result["cold_total_us"][quantile]
    cell.metrics["warm_p50_us"] = result["warm_total_us"]["p50"]
    cell.metrics["cold_errors"] = result["errors"]


def ping_pong(cell, arguments):
    with measure.AwakeCpus():
        for name, size in (("rr64", 64), ("rr1k", 1024)):
            with cell.meter() as cpu:
                result = mbload("pp", "-a", cell.ip, "-p", topology.ECHO_PORT, "-s", size, "-t", arguments.secs)
            for quantile in ("p50", "p90", "p99", "p999"):
                cell.metrics[f"{name}_{quantile}_us"] = result["lat_us"][quantile]
            cell.metrics[name + "_rps"] = result["rps"]
            cpu.per(cell.metrics, name, "10k", result["total"] / 1e4)


def http(cell, arguments):
    for connections in (1, 16, 64):
        name = f"http{connections}"
        with measure.AwakeCpus(connections == 1), cell.meter() as cpu:
            script = os.path.join(topology.HERE, "wrk.lua")
            done = client(["wrk", "-t1", f"-c{connections}", f"-d{max(1, int(arguments.secs))}s", "-s", script,
                           f"http://{cell.ip}:{topology.HTTP_PORT}/"])
        result = json.loads(next(line[5:] for line in done.stdout.splitlines() if line.startswith("JSON ")))
        cell.metrics[name + "_rps"] = result["requests"] / result["duration_us"] * 1e6
        for quantile in ("p50", "p90", "p99", "p999"):
            cell.metrics[f"{name}_{quantile}_us"] = result[quantile]
        cell.metrics[name + "_errors"] = result["errors"]
        cpu.per(cell.metrics, name, "10k", result["requests"] / 1e4)


def new_connections(cell, arguments):
    for name, at_once, pause_us in (("paced", 1, 3000), ("conn1", 1, 0), ("conn32", 32, 0)):
        with measure.AwakeCpus(at_once == 1), cell.meter() as cpu:
            result = mbload("cr", "-a", cell.ip, "-p", topology.ECHO_PORT, "-P", topology.ECHO_PORTS, "-c", at_once,
                            "-g", pause_us, "-t", arguments.secs, "-n", 60000)
        cell.metrics[name + "_cps"] = result["cps"]
        cell.metrics[name + "_errors"] = result["errors"]
        for part in ("connect", "total"):
            for quantile in ("p50", "p99"):
                if result[part + "_us"]:
                    cell.metrics[f"{name}_{part}_{quantile}_us"] = result[part + "_us"][quantile]
        if result["total"]:
            cpu.per(cell.metrics, name, "10k", result["total"] / 1e4)


def bulk(cell, arguments):
    seconds = arguments.bulk_secs if cell.scope == "cross" else arguments.bulk_secs_same
    for streams in (1, 8):
        for direction, flags in (("up", []), ("down", ["-R"])):
            name = f"bulk{streams}_{direction}"
            with cell.meter() as cpu:
                done = client(["iperf3", "-c", cell.ip, "-p", topology.IPERF_PORT, "-t", seconds, "-P", streams, "-J"] + flags, seconds + 20)
            result = json.loads(done.stdout)
            if "error" in result:
                raise RuntimeError(f"iperf3, {streams} streams {direction}: {result['error']}")
            received = result["end"]["sum_received"]
            cell.metrics[name + "_gbps"] = received["bits_per_second"] / 1e9
            cpu.per(cell.metrics, name, "gb", received["bytes"] / 1e9)
            time.sleep(0.1)


# In the order in which they run: memory before anything has made the proxies grow.
CASES = {"mem": memory, "cold": cold, "rr": ping_pong, "http": http, "conn": new_connections, "bulk": bulk}
