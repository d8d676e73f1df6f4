"""Istio's ztunnel in shared (in-pod) mode: one process for each node, mTLS HBONE between enrolled pods.

    ztunnel         as shipped (access log at level info, to a file)
    ztunnel:quiet   RUST_LOG=error, hence no access log

The binary is $ZTUNNEL_BIN. It must accept FAKE_CA, its own test CA: `cargo build --release --features testing`.
"""
import os
import subprocess

import topology
from suts import meshed_pods
from suts.zds import PodFeed

BINARY = os.environ.get("ZTUNNEL_BIN", "ztunnel")

# What istio-cni programs into an ambient pod (istio cni/pkg/iptables/testdata/default.golden), IPv4, DNS captured.
REDIRECTION = """*mangle
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
:ISTIO_PRERT - [0:0]
:ISTIO_OUTPUT - [0:0]
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
:ISTIO_OUTPUT - [0:0]
:ISTIO_PRERT - [0:0]
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
COMMIT
"""


class Sut:
    def __init__(self, variant=""):
        if variant not in ("", "quiet"):
            raise ValueError(f"ztunnel has no variant {variant!r}: take `ztunnel` or `ztunnel:quiet`")
        self.variant = variant
        self.processes = None
        self.proxies = {}
        self.feeds = []

    def up(self, network, scope):
        pods = meshed_pods(scope)
        directory = os.path.join(network.directory, "ztunnel")
        os.makedirs(directory, exist_ok=True)
        state = os.path.join(directory, "localxds.yaml")
        with open(state, "w") as file:
            file.write(self.mesh())
        for pod in pods:
            self.redirect(topology.pod_netns(pod))
        self.processes = topology.Processes(network.processes.log_directory)
        for node in ("a", "b") if scope == "cross" else ("a",):
            here = [pod for pod in pods if topology.PODS[pod]["node"] == node]
            feed = PodFeed(os.path.join(directory, f"zds-{node}.sock"), [self.workload(pod) for pod in here])
            feed.start()
            self.feeds.append(feed)
            self.proxies["ztunnel-" + node] = self.start(node, feed.path, state, directory)
        for feed in self.feeds:
            feed.wait_until_fed(10)
        for pod in pods:
            for port in (15001, 15006, 15008):
                network.wait_until_listening(topology.pod_netns(pod), port)

    def start(self, node, feed, state, directory):
        environment = {"PATH": os.environ["PATH"], "FAKE_CA": "true", "XDS_ADDRESS": "", "LOCAL_XDS_PATH": state, "INPOD_UDS": feed,
                       "PROXY_MODE": "shared", "NODE_NAME": "node-" + node, "CLUSTER_ID": "bench"}
        if self.variant == "quiet":
            environment["RUST_LOG"] = "error"
        argv = topology.inside(topology.node_netns(node), [BINARY, "proxy", "ztunnel"])
        return self.processes.start("ztunnel-" + node, argv, env=environment, cwd=directory)

    @staticmethod
    def redirect(netns):
        topology.run(topology.inside(netns, ["iptables-restore", "--noflush"]), text=REDIRECTION)
        topology.run(["ip", "-n", netns, "route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100"])
        topology.run(["ip", "-n", netns, "rule", "add", "fwmark", "0x111/0xfff", "pref", "32764", "lookup", "100"])

    @staticmethod
    def workload(pod):
        return f"bench//v1/Pod/default/{pod}", pod, "default", pod, topology.netns_path(topology.pod_netns(pod))

    @staticmethod
    def mesh():
        lines = ["workloads:"]
        for pod, about in topology.PODS.items():
            addresses = ", ".join(f'"{ip}"' for ip in [about["ip"]] + about["cold"])
            lines += [f"- uid: bench//v1/Pod/default/{pod}", f"  name: {pod}", "  namespace: default", "  trustDomain: cluster.local",
                      f"  serviceAccount: {pod}", f"  workloadIps: [{addresses}]", "  protocol: HBONE", f"  node: node-{about['node']}",
                      '  network: ""', "  services: {}"]
        return "\n".join(lines + ["services: []", "policies: []", ""])

    def down(self):
        for feed in self.feeds:
            feed.stop()
        self.feeds = []
        if self.processes:
            self.processes.stop()

    def pids(self):
        return {name: process.pid for name, process in self.proxies.items()}

    def info(self):
        done = subprocess.run([BINARY, "version"], capture_output=True, text=True)
        return {"binary": BINARY, "version": (done.stdout + done.stderr).strip()[:300], "variant": self.variant}

    def encrypts(self, scope):
        return scope == "cross"
