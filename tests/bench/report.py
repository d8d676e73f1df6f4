#!/usr/bin/env python3
"""Markdown tables of a result: medians (min..max) and ratios to the first SUT. `report.py FILE.json` prints them again."""
import json
import statistics
import sys

BULK = [(f"bulk{streams}_{way}", f"{streams} stream{'s' if streams > 1 else ''}, {words}")
        for streams in (1, 8) for way, words in (("up", "client to server"), ("down", "server to client"))]
OPERATIONS = [("rr64", "ping-pong 64 B"), ("http16", "HTTP 16 connections"), ("http64", "HTTP 64 connections"),
              ("conn1", "new connection, 1 at once"), ("conn32", "new connections, 32 at once")]
QUANTILES = [("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p999", "p99.9")]


def cpu_rows(names, unit):
    return [(f"{name}_{who}_cpu_per_{unit}", f"{label}: {words}")
            for name, label in names for who, words in (("proxy", "proxies"), ("all", "client, server and proxies"))]


def http_rows(connections):
    name, label = f"http{connections}", f"{connections} connection{'s' if connections > 1 else ''}"
    return [(name + "_rps", label + ": requests/s")] + [(f"{name}_{key}_us", f"{label}: {word} us") for key, word in QUANTILES if key != "p90"] + [
        (name + "_errors", label + ": errors")]


def connection_rows(name, label):
    rate = [] if name == "paced" else [(name + "_cps", label + ": connections/s")]
    return rate + [
        (name + "_connect_p50_us", label + ": connect p50 us"), (name + "_connect_p99_us", label + ": connect p99 us"),
        (name + "_total_p50_us", label + ": connect and request p50 us"), (name + "_total_p99_us", label + ": connect and request p99 us"),
        (name + "_errors", label + ": errors")]


GROUPS = [
    ("Bulk throughput, Gbit/s", [(name + "_gbps", label) for name, label in BULK]),
    ("CPU per GB moved, CPU-seconds", cpu_rows(BULK, "gb")),
    ("Ping-pong on one kept-open connection, us",
     [(f"{name}_{key}_us", f"{label} {word}") for name, label in (("rr64", "64 B"), ("rr1k", "1 KiB")) for key, word in QUANTILES]),
    ("HTTP keep-alive (wrk, nginx)", [row for connections in (1, 16, 64) for row in http_rows(connections)]),
    ("New connections (connect, 64 B request, close)",
     connection_rows("paced", "3 ms apart") + connection_rows("conn1", "1 at once") + connection_rows("conn32", "32 at once")),
    ("First connection (connect and 1 request), us",
     [("first_ever_us", "first after the proxies' start"), ("cold_p50_us", "new destination p50 (of 40)"), ("cold_p90_us", "new destination p90"),
      ("cold_max_us", "new destination max"), ("warm_p50_us", "second connection p50")]),
    ("CPU per 10,000 operations, CPU-seconds", cpu_rows(OPERATIONS, "10k")),
    ("Memory of the proxies, RSS MiB (sum)",
     [("rss_idle_mb", "idle"), ("rss_1000_mb", "1,000 idle connections"), ("rss_5000_mb", "5,000 idle connections"),
      ("rss_after_mb", "2 s after closing them"), ("rss_end_mb", "after all tests"),
      ("idle_5000_errors", "errors opening 5,000"), ("idle_5000_lost", "lost of 5,000")]),
]
SCOPES = {"cross": "Cross-node", "same": "Same-node"}


def number(value):
    size = abs(value)
    return f"{value:.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3g}"


def samples(cells, sut, scope, metric):
    """Of the cells that went well: half of a failed one proves nothing."""
    values = (cell["metrics"].get(metric) for cell in cells if (cell["sut"], cell["scope"]) == (sut, scope) and "error" not in cell)
    return [value for value in values if isinstance(value, (int, float))]


def progress(record):
    """One line for a finished cell."""
    return (f"# run {record['run']} {record['scope']:5} {record['sut']:14} {record['secs']:5.1f} s, others {record.get('others', 0):.0%}, "
            f"steal {record['steal_s']:.1f} s, plaintext on the wire: {record.get('wire_plaintext', 'not looked')} {record.get('error', '')}")


def row(label, per_sut):
    """per_sut: the samples of each SUT, the base first."""
    line = f"| {label} |"
    base = statistics.median(per_sut[0]) if per_sut[0] else None
    for index, values in enumerate(per_sut):
        line += f" {number(statistics.median(values))} ({number(min(values))}..{number(max(values))}) |" if values else " - |"
        if index:
            line += f" {statistics.median(values) / base:.2f} |" if values and base else " - |"
    return line


def scope_table(results, scope):
    suts, cells = results["args"]["sut"], results["cells"]
    lines = [f"\n## {SCOPES[scope]}\n", "| metric |" + "".join(f" {sut} |" + (" x |" if index else "") for index, sut in enumerate(suts)),
             "|---|" + "---|" * (2 * len(suts) - 1)]
    for title, rows in GROUPS:
        measured = [(label, [samples(cells, sut, scope, metric) for sut in suts]) for metric, label in rows]
        measured = [(label, per_sut) for label, per_sut in measured if any(per_sut)]
        if measured:
            lines.append(f"| **{title}** |" + " |" * (2 * len(suts) - 1))
            lines += [row(label, per_sut) for label, per_sut in measured]
    return lines


def slowed_by(trace_events):
    return (f"SLOWED: the kernel traces {', '.join(trace_events)}, which takes time in every SUT. "
            "To end it: echo 0 > /sys/kernel/tracing/events/enable")


def table(results):
    cells, about, arguments = results["cells"], results["host"], results["args"]
    others = [cell.get("others", 0) for cell in cells]
    lines = [f"Started {results['started']}, Linux {about['kernel']}, {about['cpus']} x {about['cpu']}, {arguments['runs']} runs, "
             f"{results['total_secs']:.0f} s in all. Median (min..max); x is the ratio to {arguments['sut'][0]}.",
             f"Load of others before the cells: median {statistics.median(others):.0%}, most {max(others):.0%} of the machine; "
             f"steal {sum(cell['steal_s'] for cell in cells):.1f} s."]
    if arguments.get("node_cpus"):
        lines.append("Between nodes, each node had half of the CPUs.")
    if about.get("trace_events"):
        lines.append(slowed_by(about["trace_events"]))
    lines += [f"FAILED: {cell['sut']} {cell['scope']} run {cell['run']}: {cell['error']}" for cell in cells if "error" in cell]
    for scope in arguments["scopes"]:
        lines += scope_table(results, scope)
    return "\n".join(lines)


if __name__ == "__main__":
    with open(sys.argv[1]) as source:
        print(table(json.load(source)))
