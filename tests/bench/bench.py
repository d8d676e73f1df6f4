#!/usr/bin/env python3
"""Measures a mesh against plain veth; `cargo xtask bench` builds what it needs and starts it. See README.md."""
import argparse
import json
import os
import platform
import signal
import sys
import time

import cases
import measure
import report
import suts
import topology


def measure_cell(spec, scope, run, arguments):
    """One SUT in one scope, from new namespaces and new proxies to none."""
    network = topology.Topology(os.path.join(arguments.workdir, f"{spec.replace(':', '_')}-{scope}"))
    sut = suts.load(spec)
    record = {"sut": spec, "scope": scope, "run": run, "metrics": {}}
    started, steal = time.monotonic(), measure.machine_cpu()["steal"]
    try:
        network.up()
        network.start_servers()
        servers = measure.with_descendants(process.pid for process in network.processes.running)
        record["others"] = measure.others_share(arguments.quiet_wait)
        sut.up(network, scope)
        record["info"] = sut.info()
        cell = cases.Cell(sut, scope, servers)
        record["metrics"] = cell.metrics
        cases.first_connection(cell)
        record["wire"] = cases.plaintext_on_the_wire(cell)
        record["wire_plaintext"] = record["wire"]["marker_hits"] > 0
        if sut.encrypts(scope) and record["wire_plaintext"]:
            raise RuntimeError("plaintext on the wire: what follows would not measure a mesh")
        with measure.NodeCpus(arguments.node_cpus and scope == "cross", cell.proxies, servers):
            for name, case in cases.CASES.items():
                if name in arguments.tests:
                    case(cell, arguments)
        if cell.proxies:
            cell.metrics["rss_end_mb"] = cell.proxy_rss()
    except Exception as error:  # one cell's failure is a row of the table, not the end of a long run
        record["error"] = f"{type(error).__name__}: {error}"
    finally:
        try:
            sut.down()
        finally:
            network.down()
    record["steal_s"] = round(measure.machine_cpu()["steal"] - steal, 2)
    record["secs"] = round(time.monotonic() - started, 1)
    return record


def host():
    cpu = next((line.split(":")[1].strip() for line in measure.read("/proc/cpuinfo").splitlines() if line.startswith("model name")), platform.machine())
    names = ["net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem", "net/core/rmem_max", "net/core/wmem_max", "net/core/default_qdisc"]
    sysctl = {name: " ".join(measure.read("/proc/sys/" + name).split()) for name in names}
    sysctl["congestion control in the namespaces"] = topology.CONGESTION_CONTROL
    return {"kernel": platform.release(), "cpus": os.cpu_count(), "cpu": cpu, "sysctl": sysctl, "trace_events": measure.trace_events()}


def parse():
    parser = argparse.ArgumentParser(prog="cargo xtask bench --", description=__doc__)
    parser.add_argument("--sut", default="direct,sluice", help="NAME or NAME:variant, comma-separated; the first is the base of the ratios")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scopes", default="cross,same")
    parser.add_argument("--tests", default=",".join(cases.CASES))
    parser.add_argument("--secs", type=float, default=2, help="length of each latency, HTTP or connection test")
    parser.add_argument("--bulk-secs", type=int, default=5)
    parser.add_argument("--bulk-secs-same", type=int, default=3)
    parser.add_argument("--quiet-wait", type=float, default=5, help="wait at most this long per cell for other load to fall below 10%%")
    parser.add_argument("--nice", type=int, default=0, help="niceness of all we start (negative: less disturbed by other jobs, at their cost)")
    parser.add_argument("--node-cpus", action="store_true", help="between nodes, give each node half of the CPUs")
    parser.add_argument("--no-spin", action="store_true", help="let CPUs halt while one request is in flight")
    parser.add_argument("--out", default=os.path.abspath("bench.json"))
    parser.add_argument("--workdir", default=os.path.abspath("bench-work"))
    arguments = parser.parse_args()
    for name in ("tests", "scopes", "sut"):
        setattr(arguments, name, getattr(arguments, name).split(","))
    unknown = [name for name in arguments.tests if name not in cases.CASES] + [name for name in arguments.scopes if name not in ("cross", "same")]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if arguments.node_cpus and len(measure.CPUS) < 2:
        parser.error("--node-cpus: there is one CPU for both nodes")
    arguments.workdir = os.path.abspath(arguments.workdir)
    return arguments


def main():
    arguments = parse()
    results = {"started": time.strftime("%F %T"), "host": host(), "args": vars(arguments), "cells": []}
    if results["host"]["trace_events"]:
        print(report.slowed_by(results["host"]["trace_events"]), file=sys.stderr, flush=True)
    measure.AwakeCpus.enabled = not arguments.no_spin
    for number in (signal.SIGTERM, signal.SIGINT):
        # As an exception, so that the cell at work clears up.
        signal.signal(number, lambda *_: sys.exit("interrupted"))
    if arguments.nice:
        os.setpriority(os.PRIO_PROCESS, 0, arguments.nice)
    os.makedirs(os.path.dirname(os.path.abspath(arguments.out)), exist_ok=True)
    started = time.monotonic()
    for run in range(arguments.runs):
        for scope in arguments.scopes:
            # Interleaved, in turned order every other run, so that a drift of the machine falls on all alike.
            for spec in arguments.sut if run % 2 == 0 else arguments.sut[::-1]:
                record = measure_cell(spec, scope, run, arguments)
                results["cells"].append(record)
                results["total_secs"] = round(time.monotonic() - started, 1)
                print(report.progress(record), file=sys.stderr, flush=True)
                with open(arguments.out, "w") as file:
                    json.dump(results, file, indent=1)
    table = report.table(results)
    with open(os.path.splitext(arguments.out)[0] + ".md", "w") as file:
        file.write(table + "\n")
    print(table)
    if any("error" in record for record in results["cells"]):
        sys.exit("some cells failed; see the errors above and the logs in " + arguments.workdir)


if __name__ == "__main__":
    main()
