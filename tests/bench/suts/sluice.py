"""Sluice: one agent in each node's namespace, pods captured live, mutual TLS between them.

    sluice              as shipped
    sluice:unenrolled   the agents run, their hooks are attached, and no pod is in the mesh: what bystanders pay

The binary is $SLUICE_BIN.
"""
import json
import os
import shutil
import subprocess
import tempfile
import time

import topology
from suts import meshed_pods

BINARY = os.environ.get("SLUICE_BIN", "sluice")


class Sut:
    def __init__(self, variant=""):
        if variant not in ("", "unenrolled"):
            raise ValueError(f"sluice has no variant {variant!r}: take `sluice` or `sluice:unenrolled`")
        self.variant = variant
        self.agents = {}
        self.processes = None
        self.directory = None

    def up(self, network, scope):
        # Short, because a Unix socket's path may have 107 bytes and no more.
        self.directory = tempfile.mkdtemp(prefix="sluice-bench-")
        self.pins = os.path.join(self.directory, "bpf")
        os.mkdir(self.pins)
        topology.run(["mount", "-t", "bpf", "bpf", self.pins])
        os.mkdir(os.path.join(self.directory, "policies"))
        pods = meshed_pods(scope)
        self.write("mesh.yaml", self.mesh(pods))
        self.processes = topology.Processes(network.processes.log_directory)
        for node in ("a", "b") if scope == "cross" else ("a",):
            self.write(f"agent-{node}.yaml", self.configuration(node))
            argv = [BINARY, "agent", "--config", os.path.join(self.directory, f"agent-{node}.yaml")]
            self.agents[node] = self.processes.start("sluice-" + node, topology.inside(topology.node_netns(node), argv))
        for node in self.agents:
            enrolled = [] if self.variant else [pod for pod in pods if topology.PODS[pod]["node"] == node]
            self.wait_until_captured(node, enrolled)

    def mesh(self, pods):
        label = "none" if self.variant else "ambient"
        lines = ["namespaces:", f"- {{ name: bench, labels: {{ istio.io/dataplane-mode: {label} }} }}", "pods:"]
        for pod in pods:
            about = topology.PODS[pod]
            addresses = ", ".join([about["ip"]] + about["cold"])
            lines.append(f"- {{ namespace: bench, name: {pod}, serviceAccount: {pod}, labels: {{ app: {pod} }}, addresses: [{addresses}], "
                         f"node: node-{about['node']}, netns: {topology.netns_path(topology.pod_netns(pod))}, ready: true }}")
        return "\n".join(lines + ["services: []", ""])

    def configuration(self, node):
        return "\n".join([
            f"node: node-{node}",
            "trustDomain: cluster.local",
            f"instance: {self.instance(node)}",
            f"stateDir: {self.directory}/state-{node}",
            f"socket: {self.socket(node)}",
            f"bpffs: {self.pins}",
            f"ca: {{ mode: embedded, dir: {self.directory}/ca }}",
            "mesh: mesh.yaml",
            "policies: policies/",
            "",
        ])

    def wait_until_captured(self, node, pods, patience=20):
        end, last = time.monotonic() + patience, "no answer yet"
        while time.monotonic() < end:
            if self.agents[node].poll() is not None:
                raise RuntimeError(f"the agent of node {node} ended: see {self.processes.log_path('sluice-' + node)}")
            asked = topology.run([BINARY, "status", "--output", "json", "--socket", self.socket(node)], check=False)
            last = asked.stderr.strip() or asked.stdout
            if asked.returncode == 0:
                status = json.loads(asked.stdout)
                captured = [pod["name"] for pod in status["pods"] if pod["state"] == "captured"]
                if sorted(captured) == sorted(pods):
                    return
            time.sleep(0.05)
        raise RuntimeError(f"node {node} has not captured {pods} within {patience} s; its last status: {last}")

    def down(self):
        if self.processes:
            self.processes.stop(patience=15)
        for node in self.agents:
            topology.run([BINARY, "datapath", "unload", "--instance", self.instance(node), "--bpffs", self.pins], check=False)
        self.agents = {}
        if self.directory:
            topology.run(["umount", self.pins], check=False)
            # Never through a mount that would not go: its pins are other people's to lose.
            if not os.path.ismount(self.pins):
                shutil.rmtree(self.directory)
            self.directory = None

    def pids(self):
        return {"sluice-" + node: process.pid for node, process in self.agents.items()}

    def info(self):
        done = subprocess.run([BINARY, "--version"], capture_output=True, text=True)
        return {"binary": BINARY, "version": done.stdout.strip(), "variant": self.variant}

    def encrypts(self, _scope):
        return not self.variant

    def instance(self, node):
        return f"bench-{os.getpid()}-{node}"

    def socket(self, node):
        return f"{self.directory}/run-{node}/agent.sock"

    def write(self, name, text):
        with open(os.path.join(self.directory, name), "w") as file:
            file.write(text)
